package show

import (
	"encoding/base64"
	"encoding/json"

	"github.com/lockstep-backup/lockstep/api"
	"github.com/lockstep-backup/lockstep/envelope"
	"github.com/lockstep-backup/lockstep/keymanager"
	"github.com/lockstep-backup/lockstep/prove"
)

// Name is the name that belongs to an id, or the id.
func Name(names map[string]string, id string) string {
	if n := names[id]; n != "" {
		return n
	}
	return id
}

// Secret shows a secret without its bytes; names are machines by id.
func Secret(i keymanager.Info, names map[string]string) api.Secret {
	v := api.Secret{ID: i.ID, Volume: i.Labels[keymanager.LabelVolume], Kind: i.Kind, Versions: []api.SecretVersion{}}
	if m := i.Labels[keymanager.LabelMachine]; m != "" {
		v.Machine = Name(names, m)
	}
	for _, x := range i.Versions {
		sv := api.SecretVersion{
			Version: x.Ref.Version, Ref: x.Ref.String(), State: string(x.State), Created: x.Created.UTC(),
			Expires: x.Expires, Holds: []api.SecretHold{},
		}
		for _, h := range x.Holds {
			sv.Holds = append(sv.Holds, api.SecretHold{Repository: h.Repository, Machine: Name(names, h.Machine), Point: h.Point, Since: h.Since.UTC()})
		}
		for _, t := range x.History {
			sv.History = append(sv.History, api.SecretTransition{State: string(t.State), At: t.At.UTC(), Reason: t.Reason})
		}
		v.Versions = append(v.Versions, sv)
	}
	return v
}

// Added says what a secret opens.
func Added(res prove.AddResult) api.SecretAddResult {
	v := api.SecretAddResult{
		Secret: res.Version.Ref.ID, Version: res.Version.Ref.Version, State: string(res.Version.State),
		Existing: res.Existing, Opens: []api.SecretOpens{}, Proven: res.Proven, Messages: res.Messages,
	}
	if v.Proven == nil {
		v.Proven = []string{}
	}
	for _, o := range res.Opens {
		v.Opens = append(v.Opens, api.SecretOpens{Point: o.Point, Disk: o.Disk, Volume: o.Volume, Protectors: o.Protectors})
	}
	return v
}

// Released is an api.Released, in memory that can be wiped: encoders keep
// buffers of their own.
func Released(ref, kind string, secret envelope.Secret) []byte {
	// Neither can fail: they are strings.
	refText, _ := json.Marshal(ref)
	kindText, _ := json.Marshal(kind)
	size := base64.StdEncoding.EncodedLen(secret.Len())
	b := make([]byte, 0, len(refText)+len(kindText)+size+40)
	b = append(append(b, `{"ref":`...), refText...)
	b = append(append(b, `,"kind":`...), kindText...)
	b = append(b, `,"data":"`...)
	b = base64.StdEncoding.AppendEncode(b, secret.Expose())
	return append(b, `"}`...)
}

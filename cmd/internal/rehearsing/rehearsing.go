// Package rehearsing is what 'lockstep drill' makes of its options and of a
// report: which files are read, what boots the machine, what is shown.
package rehearsing

import (
	"bytes"
	"cmp"
	"context"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"iter"
	"log/slog"
	"net/http"
	"os"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/lockstep-backup/lockstep/api"
	"github.com/lockstep-backup/lockstep/catalog"
	"github.com/lockstep-backup/lockstep/cli"
	"github.com/lockstep-backup/lockstep/custody"
	"github.com/lockstep-backup/lockstep/diskcrypt"
	"github.com/lockstep-backup/lockstep/drill"
	"github.com/lockstep-backup/lockstep/drill/fscheck"
	"github.com/lockstep-backup/lockstep/drill/qemuboot"
	"github.com/lockstep-backup/lockstep/envelope"
	"github.com/lockstep-backup/lockstep/export"
	"github.com/lockstep-backup/lockstep/keymanager"
	"github.com/lockstep-backup/lockstep/repository"
	"github.com/lockstep-backup/lockstep/unlock"
)

// Rehearsal is a drill that is to be held.
type Rehearsal struct {
	Options      cli.DrillOptions
	Started      time.Time
	Point        *export.Point
	Repository   *repository.Repository
	Keys         unlock.Keys
	Unlock       unlock.Options
	Declarations []catalog.Declaration // of the machine
	Actor        string
	Software     string
	Log          *slog.Logger

	typed []envelope.Secret // passphrases that were handed out, for the boot
}

// Hold holds it.
func (r *Rehearsal) Hold(ctx context.Context) (custody.Drill, error) {
	defer func() {
		for _, s := range r.typed {
			s.Wipe()
		}
	}()
	req, err := r.request()
	if err != nil {
		return custody.Drill{}, err
	}
	return drill.Run(ctx, req)
}

func wrongUsage(detail, hint string) error {
	return &api.Error{Status: http.StatusBadRequest, Title: "usage", Exit: api.ExitUsage, Detail: detail, Hint: hint}
}

func (r *Rehearsal) request() (req drill.Request, err error) {
	o := r.Options
	host, err := os.Hostname()
	if err != nil {
		return req, err
	}
	req = drill.Request{
		Point: r.Point, Repository: r.Repository, Started: r.Started, Keys: r.noting(r.Keys), Unlock: r.Unlock,
		Secret: secretOf, Sample: drill.Sample{Files: o.Files, Bytes: o.Bytes},
		Reason: cmp.Or(o.Unlock.Reason, "with a secret that was given"), Actor: r.Actor, Host: host, Software: r.Software, NotNeeded: r.notNeeded(),
		Tell: func(format string, args ...any) { o.Tell(fmt.Sprintf(format, args...)) }, Log: r.Log,
	}
	if o.Seed == "" {
		_, _ = rand.Read(req.Sample.Seed[:])
	} else if n, err := hex.Decode(req.Sample.Seed[:], []byte(o.Seed[:min(len(o.Seed), 32)])); err != nil || n != len(req.Sample.Seed) || len(o.Seed) != 32 {
		return req, wrongUsage("drill: a seed has 32 hex digits", "the report of a drill names its seed")
	}
	if !o.NoCheck {
		req.Check = fscheck.Checker{Tell: req.Tell}
	}
	if o.Boot != nil {
		if req.Boot, err = r.booter(); err != nil {
			return req, err
		}
	}
	return req, nil
}

// notNeeded gives the reasons why volumes are declared as not needed.
func (r *Rehearsal) notNeeded() func(disk, volume string) string {
	reasons := map[custody.VolumeKey]string{}
	for _, d := range r.Declarations { // by time: the last holds
		k := custody.VolumeKey{Disk: d.Disk, Volume: d.Volume}
		if reasons[k] = d.Reason; d.Withdrawn {
			delete(reasons, k)
		}
	}
	return func(disk, volume string) string { return reasons[custody.VolumeKey{Disk: disk, Volume: volume}] }
}

// secretOf is the secret version that a key's name stands for, nil for one that
// was given.
func secretOf(name string) *keymanager.Ref {
	i := strings.LastIndexByte(name, '@')
	if i < 0 {
		return nil
	}
	version, err := strconv.Atoi(name[i+1:])
	if err != nil {
		return nil
	}
	return &keymanager.Ref{ID: name[:i], Version: version}
}

// noting keeps passphrases that are handed out, where one is to be typed.
func (r *Rehearsal) noting(keys unlock.Keys) unlock.Keys {
	if r.Options.Boot == nil || !r.Options.Boot.TypePassphrase {
		return keys
	}
	return func(ctx context.Context, disk string, v diskcrypt.Volume) iter.Seq2[unlock.Key, error] {
		return func(yield func(unlock.Key, error) bool) {
			for k, err := range keys(ctx, disk, v) {
				if err == nil && (k.Kind == diskcrypt.KindPassphrase || k.Kind == diskcrypt.KindRecoveryPassword) {
					r.typed = append(r.typed, envelope.CopySecret(k.Secret.Expose()))
				}
				if !yield(k, err) {
					return
				}
			}
		}
	}
}

// booting boots with the passphrases that were handed out until then.
type booting struct {
	qemuboot.Booter
	r *Rehearsal
}

// Boot boots.
func (b booting) Boot(ctx context.Context, disks []drill.BootDisk) (drill.Finding, error) {
	if len(b.r.typed) > 0 {
		b.Prompt, b.Passphrases = qemuboot.DefaultPrompt, b.r.typed
	}
	return b.Booter.Boot(ctx, disks)
}

func (r *Rehearsal) booter() (drill.Booter, error) {
	o := r.Options.Boot
	b := qemuboot.Booter{
		MemoryMiB: o.MemoryMiB, CPUs: o.CPUs, Bus: o.Bus, Firmware: o.Firmware, KVM: o.KVM,
		Screenshot: o.Screenshot, Timeout: o.Timeout, Console: r.Options.Console, Log: r.Log,
	}
	switch {
	case o.Marker != "":
		marker, err := regexp.Compile(o.Marker)
		if err != nil {
			return nil, wrongUsage("drill: --boot-marker: "+err.Error(), "it is a regular expression, for example 'login:'")
		}
		b.Marker = marker
	case o.Screenshot == "":
		b.Marker = qemuboot.DefaultMarker
	}
	if b.Bus != qemuboot.BusVirtio && b.Bus != qemuboot.BusSATA {
		return nil, wrongUsage("drill: --boot-bus "+b.Bus+" is not known", "virtio, or sata for systems without its drivers")
	}
	return booting{b, r}, nil
}

// Drilled is a report for the CLI.
func Drilled(d custody.Drill) (cli.Drilled, error) {
	out := cli.Drilled{
		Point: d.Point, Machine: d.MachineName, Time: d.PointTime, Started: d.Started, Outcome: d.Outcome, Reason: d.Reason, Actor: d.Actor,
		Steps: []cli.DrillStep{}, Tools: []cli.DrillTool{},
		Open: d.Timings.Open, Unlock: d.Timings.Unlock, Readable: d.Timings.Readable, Boot: d.Timings.Boot, Total: d.Timings.Total,
	}
	for _, s := range d.Steps {
		x := cli.DrillStep{Kind: s.Kind, Disk: s.Disk, Object: s.Object, Outcome: s.Outcome, Detail: s.Detail, Files: s.Files, Bytes: s.Bytes, Seconds: s.Seconds}
		if s.Secret != nil {
			x.Secret = s.Secret.String()
		}
		out.Steps = append(out.Steps, x)
	}
	for _, t := range d.Tools {
		out.Tools = append(out.Tools, cli.DrillTool(t))
	}
	var page bytes.Buffer
	err := drill.HTML(&page, d)
	out.HTML = page.Bytes()
	return out, err
}

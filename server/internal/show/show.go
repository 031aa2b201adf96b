// Package show turns what catalog, custody and key manager know into the wire
// types of package api. It reads nothing and decides nothing: every function is
// pure, and no secret goes through it but the one that is being released.
package show

import (
	"strings"

	"github.com/lockstep-backup/lockstep/api"
	"github.com/lockstep-backup/lockstep/catalog"
	"github.com/lockstep-backup/lockstep/diskcrypt"
)

// Machine shows a protected machine.
func Machine(m catalog.Machine) api.Machine {
	v := api.Machine{ID: m.ID, Name: m.Name, Created: m.Created.UTC(), Disks: []api.DiskDef{}}
	for _, d := range m.Disks {
		def := api.DiskDef{ID: d.ID, Source: d.Source, Header: d.Header}
		for volume, declared := range d.Declared {
			if def.Declared == nil {
				def.Declared = map[string]string{}
			}
			def.Declared[volume] = diskcrypt.FormatDeclaration(declared)
		}
		v.Disks = append(v.Disks, def)
	}
	return v
}

// OneLine joins what errors.Join has put on lines of their own.
func OneLine(s string) string {
	return strings.Join(strings.FieldsFunc(s, func(r rune) bool { return r == '\n' }), "; ")
}

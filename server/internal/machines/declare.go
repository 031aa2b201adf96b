package machines

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/lockstep-backup/lockstep/api"
	"github.com/lockstep-backup/lockstep/catalog"
	"github.com/lockstep-backup/lockstep/diskcrypt"
	"github.com/lockstep-backup/lockstep/server/internal/frame"
)

// declarations reads what a request says of one disk's volumes.
func declarations(disk string, texts map[string]string) (map[string]map[string]string, error) {
	var out map[string]map[string]string
	for _, volume := range slices.Sorted(maps.Keys(texts)) {
		d, err := diskcrypt.ParseDeclaration(texts[volume])
		if err != nil {
			return nil, frame.Usage("%s/%s: %v", disk, volume, err)
		}
		if out == nil {
			out = map[string]map[string]string{}
		}
		out[volume] = d
	}
	return out, nil
}

// declare changes the declarations of a machine's disks. What other values
// hold of the disks' maps stays as it is.
func declare(disks []catalog.MachineDisk, req api.MachineChange) error {
	change := func(place string, f func(volume string, declared map[string]map[string]string) error) error {
		id, volume, ok := strings.Cut(place, "/")
		if !ok {
			volume = diskcrypt.WholeDisk
		}
		i := slices.IndexFunc(disks, func(d catalog.MachineDisk) bool { return d.ID == id })
		if i < 0 {
			return frame.Usage("the machine has no disk %s", id)
		}
		declared := maps.Clone(disks[i].Declared)
		if declared == nil {
			declared = map[string]map[string]string{}
		}
		if err := f(volume, declared); err != nil {
			return err
		}
		if len(declared) == 0 {
			declared = nil
		}
		disks[i].Declared = declared
		return nil
	}
	for _, place := range req.Undeclare {
		err := change(place, func(volume string, declared map[string]map[string]string) error {
			if declared[volume] == nil {
				return frame.Usage("nothing is declared of %s", place)
			}
			delete(declared, volume)
			return nil
		})
		if err != nil {
			return err
		}
	}
	for _, place := range slices.Sorted(maps.Keys(req.Declare)) {
		err := change(place, func(volume string, declared map[string]map[string]string) error {
			d, err := diskcrypt.ParseDeclaration(req.Declare[place])
			if err != nil {
				return frame.Usage("%s: %v", place, err)
			}
			declared[volume] = d
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// declaredPlaces refuses a declaration of a place that the disk does not have:
// a typing error would be one more volume that nobody opens.
func declaredPlaces(def catalog.MachineDisk, found *diskcrypt.Report) error {
	var known []string
	for _, a := range found.Areas {
		known = append(known, a.ID)
	}
	for _, v := range found.Volumes {
		known = append(known, v.ID)
	}
	for _, volume := range slices.Sorted(maps.Keys(def.Declared)) {
		if !slices.Contains(known, volume) {
			return frame.Usage("%s/%s is declared, but the disk has no such place; it has %s", def.ID, volume, strings.Join(slices.Compact(slices.Sorted(slices.Values(known))), ", "))
		}
	}
	return nil
}

// declarationProblem is the error of looking at a disk; a declaration that
// cannot be is the user's.
func declarationProblem(def catalog.MachineDisk, err error) error {
	if errors.Is(err, diskcrypt.ErrDeclaration) {
		return frame.Usage("disk %s: %v", def.ID, err)
	}
	return fmt.Errorf("disk %s: %w", def.ID, err)
}

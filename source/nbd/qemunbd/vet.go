package qemunbd

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"path/filepath"

	"github.com/lockstep-backup/lockstep/disk"
	"github.com/lockstep-backup/lockstep/source"
)

// Exit statuses of qemu-img check.
const (
	checkDamaged     = 2
	checkLeaks       = 3 // space that nothing uses: nothing is lost
	checkUnsupported = 63
)

// vet refuses an image that is cut short or at odds with itself, and everything
// below it: QEMU would read zeroes where its data was. Raw images, also as the
// lowest of a chain, cannot be told.
func (i *image) vet(ctx context.Context) error {
	for ; i != nil; i = i.backing {
		if i.format == disk.FormatRaw {
			continue
		}
		alone := *i
		alone.backing = nil // which is looked at by itself
		options, err := json.Marshal(alone.options(false))
		if err != nil {
			return err
		}
		err = alone.covered(ctx, "json:"+string(options))
		if err == nil {
			err = check(ctx, "json:"+string(options))
		}
		if err != nil {
			return fmt.Errorf("%s: %w", filepath.Base(i.path), err)
		}
	}
	return nil
}

// qemuImg is a command that asks about an image.
func qemuImg(ctx context.Context, command, options string) (*exec.Cmd, *tail, error) {
	program, err := exec.LookPath("qemu-img")
	if err != nil {
		return nil, nil, refused("images that are not raw are checked with qemu-img first, which is not installed here (Debian: qemu-utils)")
	}
	cmd := exec.CommandContext(ctx, program, command, "--output=json", options)
	said := &tail{}
	cmd.Env, cmd.Stderr = []string{"LC_ALL=C"}, said
	return cmd, said, nil
}

// covered compares where the image's data is with its files' lengths.
func (i *image) covered(ctx context.Context, options string) error {
	ctx, stop := context.WithCancel(ctx)
	defer stop() // ends it where its answer makes no sense
	cmd, said, err := qemuImg(ctx, "map", options)
	if err != nil {
		return err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start qemu-img: %w", err)
	}
	ends, err := mapped(out, i.extents)
	if err != nil {
		stop()
	}
	switch ended := cmd.Wait(); {
	case ctx.Err() != nil && err == nil:
		return ctx.Err()
	case ended != nil && said.String() != "":
		return refusal("qemu-img map", said.String())
	case err != nil || ended != nil:
		return fmt.Errorf("qemu-img map: %w", errors.Join(err, ended))
	}
	if len(i.extents) == 0 {
		return long(i.size, ends[0])
	}
	for n, x := range i.extents {
		if !x.sparse {
			continue // looked at with the description
		}
		if err := long(x.size, ends[n]); err != nil {
			return fmt.Errorf("%s: %w", filepath.Base(x.path), err)
		}
	}
	return nil
}

// mapped reads what qemu-img map says, piece by piece, for a large image has
// many: where in each extent its last data ends, or in the file if there are none.
func mapped(r io.Reader, extents []extent) (ends []int64, err error) {
	ends = make([]int64, max(1, len(extents)))
	d := json.NewDecoder(r)
	if _, err := d.Token(); err != nil { // [
		return nil, err
	}
	for n := 0; d.More(); {
		var m struct {
			Start, Length int64
			Data          bool
			Offset        *int64 // none where it is compressed
		}
		if err := d.Decode(&m); err != nil {
			return nil, err
		}
		for n < len(extents)-1 && m.Start >= extents[n].end {
			n++
		}
		if m.Data && m.Offset != nil {
			ends[n] = max(ends[n], *m.Offset+m.Length)
		}
	}
	_, err = d.Token() // ]
	return ends, err
}

// check has QEMU look for what is at odds in an image's tables.
func check(ctx context.Context, options string) error {
	cmd, said, err := qemuImg(ctx, "check", options)
	if err != nil {
		return err
	}
	err = cmd.Run()
	var exit *exec.ExitError
	switch {
	case err == nil || ctx.Err() != nil:
		return ctx.Err()
	case !errors.As(err, &exit):
		return fmt.Errorf("start qemu-img: %w", err)
	}
	switch exit.ExitCode() {
	case checkLeaks, checkUnsupported:
		return nil
	case checkDamaged:
		return fmt.Errorf("%w: qemu-img check says: %.300s", source.ErrDamaged, said)
	}
	if err := refusal("qemu-img check", said.String()); errors.Is(err, source.ErrInUse) {
		return err
	}
	return fmt.Errorf("%w: qemu-img check says: %.300s", source.ErrDamaged, said)
}

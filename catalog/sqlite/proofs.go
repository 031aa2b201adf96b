package sqlite

import (
	"context"
	"fmt"

	"github.com/lockstep-backup/lockstep/catalog"
)

type proofs struct{ session }

const proofColumns = `key, point, disk, volume, secret, version, protectors, recognised, key_check, time, signer, vkproof`

func scanProof(p *catalog.Proof) []any {
	return []any{
		&p.Key, &p.Point, &p.Disk, &p.Volume, &p.Secret, &p.Version,
		jsonColumn(&p.Protectors), &p.Recognised, &p.KeyCheck, timeColumn(&p.Time), &p.Signer, &p.VKProof,
	}
}

func (s proofs) Put(ctx context.Context, p catalog.Proof) error {
	op := "record proof " + p.Key
	protectors, err := jsonText(p.Protectors)
	if err != nil {
		return fmt.Errorf("%s: %w", op, err)
	}
	_, err = s.exec(ctx, op, `INSERT INTO proofs (`+proofColumns+`) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
		ON CONFLICT (key) DO NOTHING`,
		p.Key, p.Point, p.Disk, p.Volume, p.Secret, p.Version, protectors, p.Recognised, p.KeyCheck, timeText(p.Time), p.Signer, p.VKProof)
	return err
}

func (s proofs) OfPoint(ctx context.Context, point string) ([]catalog.Proof, error) {
	return rows(ctx, s.session, "list proofs", `SELECT `+proofColumns+` FROM proofs WHERE point = ? ORDER BY time, key`,
		[]any{point}, scanProof)
}

func (s proofs) OfMachine(ctx context.Context, machine string) ([]catalog.Proof, error) {
	return rows(ctx, s.session, "list proofs", `SELECT `+proofColumns+` FROM proofs
		WHERE point IN (SELECT id FROM points WHERE machine = ?) ORDER BY time, key`, []any{machine}, scanProof)
}

func (s proofs) OfSecret(ctx context.Context, secret string, version int) ([]catalog.Proof, error) {
	return rows(ctx, s.session, "list proofs", `SELECT `+proofColumns+` FROM proofs
		WHERE secret = ? AND version = ? ORDER BY time, key`, []any{secret, version}, scanProof)
}

func (s proofs) Forget(ctx context.Context, key string) error {
	_, err := s.exec(ctx, "forget proof "+key, `DELETE FROM proofs WHERE key = ?`, key)
	return err
}

func (s proofs) PutAttempt(ctx context.Context, a catalog.Attempt) error {
	op := "record attempt"
	opened, err := jsonText(a.Opened)
	if err != nil {
		return fmt.Errorf("%s: %w", op, err)
	}
	_, err = s.exec(ctx, op, `INSERT INTO attempts (header_digest, secret, version, opened, time) VALUES (?, ?, ?, ?, ?)
		ON CONFLICT (header_digest, secret, version) DO UPDATE SET opened = excluded.opened, time = excluded.time`,
		a.HeaderDigest, a.Secret, a.Version, opened, timeText(a.Time))
	return err
}

func (s proofs) Attempts(ctx context.Context, headerDigest string) ([]catalog.Attempt, error) {
	return rows(ctx, s.session, "list attempts", `SELECT header_digest, secret, version, opened, time FROM attempts
		WHERE header_digest = ? ORDER BY secret, version`, []any{headerDigest}, func(a *catalog.Attempt) []any {
		return []any{&a.HeaderDigest, &a.Secret, &a.Version, jsonColumn(&a.Opened), timeColumn(&a.Time)}
	})
}

type packages struct{ session }

const packageColumns = `key, point, recipients, refs, time`

func scanPackage(p *catalog.Package) []any {
	return []any{&p.Key, &p.Point, jsonColumn(&p.Recipients), jsonColumn(&p.Refs), timeColumn(&p.Time)}
}

func (s packages) Put(ctx context.Context, p catalog.Package) error {
	op := "record key package " + p.Key
	recipients, err := jsonText(p.Recipients)
	if err != nil {
		return fmt.Errorf("%s: %w", op, err)
	}
	refs, err := jsonText(p.Refs)
	if err != nil {
		return fmt.Errorf("%s: %w", op, err)
	}
	_, err = s.exec(ctx, op, `INSERT INTO packages (`+packageColumns+`) VALUES (?, ?, ?, ?, ?) ON CONFLICT (key) DO NOTHING`,
		p.Key, p.Point, recipients, refs, timeText(p.Time))
	return err
}

func (s packages) OfPoint(ctx context.Context, point string) ([]catalog.Package, error) {
	return rows(ctx, s.session, "list key packages", `SELECT `+packageColumns+` FROM packages WHERE point = ? ORDER BY time, key`,
		[]any{point}, scanPackage)
}

func (s packages) OfMachine(ctx context.Context, machine string) ([]catalog.Package, error) {
	return rows(ctx, s.session, "list key packages", `SELECT `+packageColumns+` FROM packages
		WHERE point IN (SELECT id FROM points WHERE machine = ?) ORDER BY time, key`, []any{machine}, scanPackage)
}

func (s packages) PutHeader(ctx context.Context, p catalog.HeaderPackage) error {
	op := "record header package " + p.Key
	recipients, err := jsonText(p.Recipients)
	if err != nil {
		return fmt.Errorf("%s: %w", op, err)
	}
	_, err = s.exec(ctx, op, `INSERT INTO header_packages (key, machine, header_digest, recipients) VALUES (?, ?, ?, ?)
		ON CONFLICT (key, header_digest) DO NOTHING`, p.Key, p.Machine, p.HeaderDigest, recipients)
	return err
}

func (s packages) Headers(ctx context.Context, machine string) ([]catalog.HeaderPackage, error) {
	return rows(ctx, s.session, "list header packages", `SELECT key, machine, header_digest, recipients FROM header_packages
		WHERE machine = ? ORDER BY header_digest, key`, []any{machine}, func(p *catalog.HeaderPackage) []any {
		return []any{&p.Key, &p.Machine, &p.HeaderDigest, jsonColumn(&p.Recipients)}
	})
}

func (s packages) Forget(ctx context.Context, key string) error {
	for _, table := range []string{"packages", "header_packages"} {
		if _, err := s.exec(ctx, "forget package "+key, `DELETE FROM `+table+` WHERE key = ?`, key); err != nil {
			return err
		}
	}
	return nil
}

type declarations struct{ session }

const declarationColumns = `key, machine, disk, volume, reason, time, withdrawn`

func (s declarations) Put(ctx context.Context, d catalog.Declaration) error {
	_, err := s.exec(ctx, "record declaration "+d.Key, `INSERT INTO declarations (`+declarationColumns+`)
		VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT (key) DO NOTHING`,
		d.Key, d.Machine, d.Disk, d.Volume, d.Reason, timeText(d.Time), d.Withdrawn)
	return err
}

func (s declarations) OfMachine(ctx context.Context, machine string) ([]catalog.Declaration, error) {
	return rows(ctx, s.session, "list declarations", `SELECT `+declarationColumns+` FROM declarations
		WHERE machine = ? ORDER BY time, key`, []any{machine}, func(d *catalog.Declaration) []any {
		return []any{&d.Key, &d.Machine, &d.Disk, &d.Volume, &d.Reason, timeColumn(&d.Time), &d.Withdrawn}
	})
}

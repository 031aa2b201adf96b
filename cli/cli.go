// Package cli is the lockstep command: it turns arguments into calls of the
// HTTP API and answers into text or JSON. It is not an engine: it imports the
// api package only, and whatever it can do a script can do with the same calls.
//
// Each group of commands is a package below internal/; this one puts them
// together. Its invariant is the command contract of docs/cli.md: the exit
// statuses, one JSON document on standard output with -o json, and no secret in
// an argument, an error or any output but the one that was asked for.
package cli

import (
	"context"

	"github.com/spf13/cobra"

	"github.com/lockstep-backup/lockstep/cli/internal/audits"
	"github.com/lockstep-backup/lockstep/cli/internal/backups"
	"github.com/lockstep-backup/lockstep/cli/internal/browses"
	"github.com/lockstep-backup/lockstep/cli/internal/catalogs"
	"github.com/lockstep-backup/lockstep/cli/internal/checks"
	"github.com/lockstep-backup/lockstep/cli/internal/drills"
	"github.com/lockstep-backup/lockstep/cli/internal/exports"
	"github.com/lockstep-backup/lockstep/cli/internal/imports"
	"github.com/lockstep-backup/lockstep/cli/internal/jobs"
	"github.com/lockstep-backup/lockstep/cli/internal/machines"
	"github.com/lockstep-backup/lockstep/cli/internal/points"
	"github.com/lockstep-backup/lockstep/cli/internal/policies"
	"github.com/lockstep-backup/lockstep/cli/internal/repositories"
	"github.com/lockstep-backup/lockstep/cli/internal/restores"
	"github.com/lockstep-backup/lockstep/cli/internal/secrets"
	"github.com/lockstep-backup/lockstep/cli/internal/setup"
	"github.com/lockstep-backup/lockstep/cli/internal/shell"
	"github.com/lockstep-backup/lockstep/cli/internal/volumes"
)

// What a program hands in and gets back; package shell says what each is.
type (
	Env          = shell.Env
	Connection   = shell.Connection
	InitOptions  = shell.InitOptions
	InitResult   = shell.InitResult
	ServeOptions = shell.ServeOptions
	DemoOptions  = shell.DemoOptions

	StoreCheckOptions = shell.StoreCheckOptions
	StoreCheck        = shell.StoreCheck
	StoreCheckResult  = shell.StoreCheckResult

	ExportOptions  = shell.ExportOptions
	MountOptions   = shell.MountOptions
	Exported       = shell.Exported
	ExportedDisk   = shell.ExportedDisk
	ExportedVolume = shell.ExportedVolume
	Unlock         = shell.Unlock
	GivenSecret    = shell.GivenSecret
	SecretForm     = shell.SecretForm
	BrowseOptions  = shell.BrowseOptions
	BrowseResult   = shell.BrowseResult
	Browsed        = shell.Browsed
	BrowsedFile    = shell.BrowsedFile
	DrillOptions   = shell.DrillOptions
	Drilled        = shell.Drilled
	DrillStep      = shell.DrillStep
	DrillTool      = shell.DrillTool
	Drilling       = shell.Drilling
	OverlayOptions = shell.OverlayOptions
	Overlay        = shell.Overlay
	OverlayDisk    = shell.OverlayDisk
)

// groups are the commands.
var groups = []func(*shell.Run) []*cobra.Command{
	audits.Commands, backups.Commands, browses.Commands, catalogs.Commands, checks.Commands, drills.Commands, exports.Commands, imports.Commands, jobs.Commands,
	machines.Commands, points.Commands, policies.Commands, repositories.Commands, restores.Commands, secrets.Commands, setup.Commands,
	volumes.Commands,
}

// Main runs one command and returns its exit status.
func Main(ctx context.Context, env Env) int { return newRun(env).Main(ctx) }

func newRun(env Env) *shell.Run {
	r := shell.New(env)
	for _, commands := range groups {
		r.Root.AddCommand(commands(r)...)
	}
	return r
}

// WithHint adds to an error what the user can do about it.
func WithHint(err error, hint string) error { return shell.WithHint(err, hint) }

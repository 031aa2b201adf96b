package api

import (
	"context"
	"net/http"
	"net/url"
	"time"
)

// Repository is one of the installation's repositories.
type Repository struct {
	Name      string `json:"name"`
	ID        string `json:"id"`
	URL       string `json:"url"`
	Primary   bool   `json:"primary" doc:"backups write to it"`
	Reachable bool   `json:"reachable"`
	Error     string `json:"error,omitempty" doc:"why it cannot be used"`
	Writable  bool   `json:"writable" doc:"this installation's signatures count in it"`
	Machines  int    `json:"machines"`
	Points    int    `json:"points"`
	// Missing counts what copying would bring; what was deleted there is not missing.
	Missing  int        `json:"missing" doc:"recovery points that the primary has, and it neither has nor deleted"`
	Newest   *time.Time `json:"newest,omitempty" doc:"when its newest recovery point was taken"`
	LastCopy *time.Time `json:"last_copy,omitempty" doc:"when copying to it last came to its end"`
}

// RepositoryAdd makes a repository, or joins one that is there.
type RepositoryAdd struct {
	Name           string `json:"name"`
	URL            string `json:"url"`
	PassphraseFile string `json:"passphrase_file,omitempty" doc:"a file on the server's host with a passphrase that opens it as well"`
	IdentityFile   string `json:"identity_file,omitempty" doc:"a file on the server's host with a recovery kit or identity that opens it"`
	KitFile        string `json:"kit_file,omitempty" doc:"where the recovery kit of a new one goes"`
}

// RepositoryAdded says what was added.
type RepositoryAdded struct {
	Name      string   `json:"name"`
	ID        string   `json:"id"`
	URL       string   `json:"url"`
	TrustRoot string   `json:"trust_root"`
	Made      bool     `json:"made" doc:"it was not there before"`
	KitFile   string   `json:"kit_file,omitempty"`
	Warnings  []string `json:"warnings,omitempty"`
}

// RepositoryRemoved says what was forgotten.
type RepositoryRemoved struct {
	Name string `json:"name"`
	ID   string `json:"id"`
	URL  string `json:"url"`
	// Only is empty but with force.
	Only     []string `json:"only" doc:"recovery points that no other repository was found to have"`
	Warnings []string `json:"warnings,omitempty"`
}

// CopyRequest copies recovery points to another repository. Without To, what
// the machines' policies say is done.
type CopyRequest struct {
	To       string   `json:"to,omitempty" doc:"name of the repository; empty = those that the policies name"`
	From     string   `json:"from,omitempty" doc:"name of the repository; empty = the primary"`
	Machines []string `json:"machines,omitempty" doc:"names; empty = all"`
	Points   []string `json:"points,omitempty" doc:"ids; empty = all that are listed"`
	Newest   int      `json:"newest,omitempty" minimum:"0" doc:"of each machine the newest N only"`
	Verify   bool     `json:"verify,omitempty" doc:"open every extent that was copied where it lies then"`
	Rates
}

// CopyResult says what was copied.
type CopyResult struct {
	Copies []MachineCopy `json:"copies"`
}

// MachineCopy is what came of copying one machine to one repository.
type MachineCopy struct {
	Machine  string       `json:"machine"`
	From     string       `json:"from"`
	To       string       `json:"to"`
	Points   []string     `json:"points" doc:"copied now, oldest first"`
	Present  int          `json:"present" doc:"recovery points that were there"`
	Deleted  int          `json:"deleted" doc:"recovery points that were deleted there, and did not come back"`
	Objects  int64        `json:"objects" doc:"written"`
	Found    int64        `json:"found" doc:"objects that were there"`
	Bytes    int64        `json:"bytes" doc:"written"`
	Sidecars int64        `json:"sidecars" doc:"proofs and other statements written"`
	Failed   []FailedCopy `json:"failed,omitempty"`
	Problems []string     `json:"problems,omitempty"`
	Error    string       `json:"error,omitempty"`
}

// FailedCopy is a recovery point that could not be copied.
type FailedCopy struct {
	Point string `json:"point"`
	Error string `json:"error"`
}

// RepairRequest brings damaged objects back from other repositories.
type RepairRequest struct {
	Repository string   `json:"repository,omitempty" doc:"name; empty = the primary"`
	From       string   `json:"from,omitempty" doc:"name of the repository to take them from; empty = any other"`
	Objects    []string `json:"objects,omitempty" doc:"keys of damaged objects; empty = everything is verified first"`
	DryRun     bool     `json:"dry_run,omitempty" doc:"say what can be brought back from where, change nothing"`
	Rates
}

// RepairResult says what was brought back.
type RepairResult struct {
	Repository string           `json:"repository"`
	DryRun     bool             `json:"dry_run"`
	Repaired   []RepairedObject `json:"repaired" doc:"in a dry run: that could be"`
	Failed     []FailedRepair   `json:"failed"`
	Left       int              `json:"left" doc:"findings of the verification afterwards"`
}

// RepairedObject is an object that was brought back.
type RepairedObject struct {
	Object string `json:"object"`
	From   string `json:"from" doc:"name of the repository; its own where a second copy was whole"`
	As     string `json:"as,omitempty" doc:"its key now, where it is another one"`
}

// FailedRepair is an object that could not be brought back.
type FailedRepair struct {
	Object string `json:"object"`
	Error  string `json:"error"`
}

// Repositories lists the installation's repositories.
func (c *Client) Repositories(ctx context.Context) ([]Repository, error) {
	return call[[]Repository](ctx, c, http.MethodGet, nil, nil, "repositories")
}

// AddRepository makes a repository, or joins one.
func (c *Client) AddRepository(ctx context.Context, r RepositoryAdd) (RepositoryAdded, error) {
	return call[RepositoryAdded](ctx, c, http.MethodPost, r, nil, "repositories")
}

// PromoteRepository makes a repository the one that backups write to.
func (c *Client) PromoteRepository(ctx context.Context, name string) (Repository, error) {
	return call[Repository](ctx, c, http.MethodPost, nil, nil, "repositories", name, "promote")
}

// RemoveRepository forgets a repository; force also where it is the only place
// of recovery points. Nothing in it is touched.
func (c *Client) RemoveRepository(ctx context.Context, name string, force bool) (RepositoryRemoved, error) {
	var q url.Values
	if force {
		q = query("force", "true")
	}
	return call[RepositoryRemoved](ctx, c, http.MethodDelete, nil, q, "repositories", name)
}

// Copy starts copying.
func (c *Client) Copy(ctx context.Context, r CopyRequest) (Job, error) {
	return call[Job](ctx, c, http.MethodPost, r, nil, "copies")
}

// Repair starts a repair.
func (c *Client) Repair(ctx context.Context, r RepairRequest) (Job, error) {
	return call[Job](ctx, c, http.MethodPost, r, nil, "repairs")
}

// Package shell is one run of the lockstep command without its commands: what
// comes from outside, the global flags, the connection, printing as text or
// JSON, following a job, errors with hints, and the exit status.
package shell

import (
	"context"
	"io"
	"time"

	"github.com/lockstep-backup/lockstep/api"
)

// SecretForm is a secret as it may be meant. Whoever has it clears it.
type SecretForm struct {
	Kind string
	Data []byte
}

// Env is everything that a run needs from outside. Nil functions of a command
// make that command fail with a clear error; the others have defaults.
type Env struct {
	Args           []string // without the program's name
	Stdin          io.Reader
	Stdout, Stderr io.Writer
	Getenv         func(string) string
	Version        string

	// Connect gives a client of the named server, else of the server on the
	// data directory's socket, else of a handler in this process. The returned
	// function ends what was started for it.
	Connect func(context.Context, Connection) (*api.Client, func() error, error)
	Init    func(context.Context, InitOptions) (InitResult, error)
	// Serve answers until the context ends.
	Serve func(context.Context, ServeOptions) error
	Demo  func(context.Context, DemoOptions) error
	// VerifyStored checks the repository at a URL without any key. progress is
	// called with the bytes read so far.
	VerifyStored func(ctx context.Context, url string, progress func(done int64)) (api.VerifyResult, error)
	// CheckStore tries a store, without a data directory.
	CheckStore func(context.Context, StoreCheckOptions) (StoreCheckResult, error)
	// Export and Mount give a recovery point to others until the context ends.
	Export func(context.Context, ExportOptions) error
	// Browse reads files out of a recovery point.
	Browse func(context.Context, BrowseOptions) (BrowseResult, error)
	Mount  func(context.Context, MountOptions) error
	// Drill rehearses restores.
	Drill Drilling
	// Overlay looks at what was written over an exported recovery point.
	Overlay        func(context.Context, OverlayOptions) (Overlay, error)
	DiscardOverlay func(context.Context, OverlayOptions) error

	// IsTerminal says whether one of Stdin, Stdout and Stderr is a terminal.
	// By default an *os.File is asked.
	IsTerminal func(stream any) bool
	// ReadPassword reads a line from the terminal without echo. By default
	// Stdin is read.
	ReadPassword func(context.Context) ([]byte, error)
	// DecodeADE reads a secret of Azure Disk Encryption as the key vault shows it,
	// with the private key that unwraps it, nil = none. nil: it cannot be read.
	DecodeADE func(shown, kek []byte) ([]SecretForm, error)
}

// Connection says which server is meant.
type Connection struct {
	DataDir string
	Server  string // URL, "" = whatever serves the data directory
	// Overlay is a file whose disks stand for those of its machine; the engine
	// runs in this process then.
	Overlay string
}

// InitOptions says how to make a data directory.
type InitOptions struct {
	DataDir                  string
	Repository               string   // URL, "" = a local one inside the data directory
	Unsealed                 bool     // the repository is not sealed a second time
	PassphraseFile           string   // passphrase that holds the repository's DEK
	KeyManagerPassphraseFile string   // passphrase that seals the embedded key manager
	KeyManagerKeyFile        string   // key file that seals the embedded key manager
	KitFile                  string   // where the recovery kit goes, "" = a default
	Recipients               []string // age recipients of key packages; none = a new identity goes into the kit
}

// InitResult says what was made.
type InitResult struct {
	DataDir    string   `json:"data_dir"`
	Repository string   `json:"repository"`
	KitFile    string   `json:"kit_file,omitempty"`
	Recipient  string   `json:"recipient,omitempty"`
	Warnings   []string `json:"warnings"`
	KeyPlaces  []string `json:"key_places"` // where each key of ours lies and how weak that is, in words
}

// ServeOptions says what to serve.
type ServeOptions struct {
	DataDir      string
	AllowSources []string // folders from which disks may be read
	AllowTargets []string // folders into which disks may be restored
	// Ready is called once with the address when requests are answered.
	Ready func(address string)
	Log   io.Writer
}

// DemoOptions says how to show the whole story.
type DemoOptions struct {
	Dir   string    // stays afterwards; "" = a temporary directory that goes
	Story io.Writer // what happens, for people
}

// ExportOptions says how to export a recovery point over NBD.
type ExportOptions struct {
	DataDir      string
	Point        string
	Repository   string  // name of the one to read from; "" = the nearest that has it
	Address      string  // unix:PATH or HOST:PORT
	Overlay      string  // file that takes what is written; "" = read-only
	Unlock       *Unlock // nil: only the ciphertext
	Certificates string  // folder
	Insecure     bool
	Ready        func(Exported) // called once when clients are answered
	Log          io.Writer
}

// Exported is a recovery point that is exported or mounted.
type Exported struct {
	Point    string           `json:"point"`
	Machine  string           `json:"machine"`
	Time     time.Time        `json:"time"`
	Overlay  string           `json:"overlay,omitempty"`
	Dir      string           `json:"dir,omitempty"`
	Disks    []ExportedDisk   `json:"disks"`
	Volumes  []ExportedVolume `json:"volumes,omitempty"` // plaintext
	Warnings []string         `json:"warnings"`
}

// ExportedDisk is one disk and where it is to be had.
type ExportedDisk struct {
	ID        string `json:"id"`
	SizeBytes int64  `json:"size_bytes"`
	URI       string `json:"uri,omitempty"`
	File      string `json:"file,omitempty"`
}

// ExportedVolume is a device of plaintext: an opened volume, or what is in one.
type ExportedVolume struct {
	ID        string `json:"id"` // of the export
	Disk      string `json:"disk"`
	Volume    string `json:"volume"`
	Class     string `json:"class"` // what it holds: "ext4", "lvm2-pv", …
	SizeBytes int64  `json:"size_bytes"`
	Secret    string `json:"secret,omitempty"`    // that opened it, where one in custody did
	Protector string `json:"protector,omitempty"` // that it opened
	URI       string `json:"uri,omitempty"`
	File      string `json:"file,omitempty"`
}

// MountOptions says how to show a recovery point as files.
type MountOptions struct {
	DataDir    string
	Point      string
	Repository string // as in ExportOptions
	Dir        string
	Unlock     *Unlock // nil: only the ciphertext
	Ready      func(Exported)
	Log        io.Writer
}

// OverlayOptions name an overlay file.
type OverlayOptions struct {
	DataDir string
	File    string
}

// Overlay is what was written over an exported recovery point.
type Overlay struct {
	File    string        `json:"file"`
	Point   string        `json:"point"`
	Machine string        `json:"machine"`
	Time    time.Time     `json:"time"`
	Disks   []OverlayDisk `json:"disks"`
}

// OverlayDisk is one disk of it.
type OverlayDisk struct {
	ID           string `json:"id"`
	SizeBytes    int64  `json:"size_bytes"`
	WrittenBytes int64  `json:"written_bytes"`
}

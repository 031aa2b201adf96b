package remote

import (
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strconv"
	"strings"
)

// ErrLocation says that a URL does not name a store.
var ErrLocation = errors.New("store URL is not valid")

// Location is a parsed store URL: scheme://bucket/prefix?parameters.
type Location struct {
	Scheme string
	Bucket string     // bucket, container, account: the URL's host
	Prefix string     // without leading and trailing slashes; may be empty
	Query  url.Values // of the parameters allowed only, each at most once
}

// secretNames are what people write into URLs and must not.
var secretNames = []string{
	"key", "access-key", "accesskey", "access_key", "secret", "secret-key", "secretkey", "secret_key", "password", "token",
	"session-token", "sig", "signature", "sas", "account-key", "accountkey", "credential", "x-amz-signature", "x-amz-credential", "sharedaccesskey",
}

// ParseLocation reads a store URL. It refuses what could be a credential,
// parameters not allowed, and given twice; errors match ErrLocation, carry a
// hint (WithHint), and repeat nothing of the URL that could be secret.
// credentials is the hint that says where credentials belong.
func ParseLocation(raw, scheme string, allowed []string, credentials string) (Location, error) {
	refuse := func(what, hint string) (Location, error) {
		return Location{}, WithHint(fmt.Errorf("%w: %s", ErrLocation, what), hint)
	}
	form := fmt.Sprintf("%s://BUCKET/PREFIX?PARAMETER=VALUE&… (docs/stores.md)", scheme)
	u, err := url.Parse(raw)
	if err != nil { // the error would repeat the URL
		return refuse("it cannot be read", form)
	}
	switch {
	case !strings.EqualFold(u.Scheme, scheme):
		return refuse("it does not begin with "+scheme+"://", form)
	case u.User != nil:
		return refuse("it holds credentials", credentials)
	case u.Opaque != "" || u.Host == "":
		return refuse("it names no bucket", form)
	case u.Port() != "":
		return refuse("the first part is a bucket, not a host with a port", "the server goes into a parameter: "+scheme+"://BUCKET/PREFIX?endpoint=https://HOST:PORT")
	case u.Fragment != "":
		return refuse("it has a fragment (#)", form)
	}
	query, err := url.ParseQuery(u.RawQuery)
	if err != nil {
		return refuse("its parameters cannot be read", form)
	}
	for name, values := range query {
		switch {
		case slices.Contains(secretNames, strings.ToLower(name)):
			return refuse("it holds credentials (parameter "+strings.ToLower(name)+")", credentials)
		case !slices.Contains(allowed, name):
			return refuse(fmt.Sprintf("unknown parameter %.40q", name), "parameters: "+strings.Join(allowed, ", "))
		case len(values) != 1:
			return refuse("parameter "+name+" is given twice", form)
		}
	}
	prefix := strings.Trim(u.Path, "/")
	for segment := range strings.SplitSeq(prefix, "/") {
		if prefix != "" && (segment == "" || segment == "." || segment == ".." || strings.ContainsFunc(segment, func(r rune) bool { return r < 0x20 || r == 0x7f })) {
			return refuse("the prefix has an empty or odd segment", form)
		}
	}
	if len(prefix) > maxPrefix {
		return refuse(fmt.Sprintf("the prefix is longer than %d bytes", maxPrefix), form)
	}
	return Location{Scheme: strings.ToLower(u.Scheme), Bucket: u.Host, Prefix: prefix, Query: query}, nil
}

// maxPrefix and store.MaxKey together stay below the 1024 bytes of a name.
const maxPrefix = 256

// String is the URL again, parameters in alphabetical order.
func (l Location) String() string {
	u := url.URL{Scheme: l.Scheme, Host: l.Bucket, Path: "/" + l.Prefix, RawQuery: l.Query.Encode()}
	if l.Prefix == "" {
		u.Path = ""
	}
	return u.String()
}

// Name is an object's name in the bucket: the prefix, a slash, the key.
func (l Location) Name(key string) string {
	if l.Prefix == "" {
		return key
	}
	return l.Prefix + "/" + key
}

// Key is Name undone; false for what lies outside the prefix.
func (l Location) Key(name string) (string, bool) {
	if l.Prefix == "" {
		return name, true
	}
	return strings.CutPrefix(name, l.Prefix+"/")
}

// Size reads a parameter that is a number of bytes, with K, M or G for powers
// of 1024; fallback where it is absent. Errors match ErrLocation.
func (l Location) Size(name string, fallback, lowest, highest int64) (int64, error) {
	s := l.Query.Get(name)
	if s == "" {
		return fallback, nil
	}
	digits, shift := s, 0
	if i := strings.IndexByte("KMG", s[len(s)-1]&^0x20); i >= 0 {
		digits, shift = s[:len(s)-1], 10*(i+1)
	}
	n, err := strconv.ParseUint(digits, 10, 33)
	if err != nil || int64(n)<<shift < lowest || int64(n)<<shift > highest {
		return 0, WithHint(fmt.Errorf("%w: parameter %s is not a size between %d and %d", ErrLocation, name, lowest, highest), "for example "+name+"=16M")
	}
	return int64(n) << shift, nil
}

// Switch reads a parameter that is 0 or 1; fallback where it is absent. Errors
// match ErrLocation.
func (l Location) Switch(name string, fallback bool) (bool, error) {
	switch l.Query.Get(name) {
	case "":
		return fallback, nil
	case "0":
		return false, nil
	case "1":
		return true, nil
	}
	return false, WithHint(fmt.Errorf("%w: parameter %s is neither 0 nor 1", ErrLocation, name), "for example "+name+"=1")
}

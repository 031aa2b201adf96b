# make demo needs Go and nothing else. make test needs Go; with root and apt it
# installs the independent tools that judge the tests, else it names what is
# missing and goes on (LOCKSTEP_REQUIRE_JUDGES=1: it stops).

GO       ?= go
FUZZTIME ?= 5s
BENCH    ?=
SOAK     ?= 1h

# Packages whose tests run under the race detector too: those with goroutines of
# their own. (catalog/sqlite is left out: the database, translated from C, takes minutes.)
RACE ?= ./audit ./job ./store/localdir ./repository ./custody/prover ./server/... ./backup/... ./prove ./restore/... ./diskcrypt/internal/plainview

VERSION := $(shell git describe --tags --always --dirty 2>/dev/null || echo development)
LDFLAGS := -s -w -X main.version=$(VERSION)

.PHONY: build demo test judges lint cross fuzz race gotest bench soak clean

build:
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags '$(LDFLAGS)' -o bin/ ./cmd/...

# DEMO_DIR=/some/folder keeps what the demo makes.
demo:
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags '$(LDFLAGS)' -o bin/lockstep ./cmd/lockstep
	bin/lockstep demo

# The closing lines are the table of judges and go test's own.
test: judges lint cross fuzz race gotest

judges:
	.ci/judges

# gofumpt and staticcheck come with the module (see `tool` in go.mod).
lint:
	@out="$$($(GO) tool gofumpt -l .)"; if [ -n "$$out" ]; then echo "gofumpt would change:"; echo "$$out"; exit 1; fi
	$(GO) vet ./...
	$(GO) tool staticcheck ./...

cross:
	CGO_ENABLED=0 GOOS=linux GOARCH=amd64 $(GO) build -o /dev/null ./...
	CGO_ENABLED=0 GOOS=linux GOARCH=arm64 $(GO) build -o /dev/null ./...
	CGO_ENABLED=0 GOOS=windows GOARCH=amd64 $(GO) build -o /dev/null ./cmd/lockstep
	CGO_ENABLED=0 GOOS=darwin GOARCH=arm64 $(GO) build -o /dev/null ./cmd/lockstep

# Every fuzz target for FUZZTIME.
fuzz:
	GO='$(GO)' .ci/fuzz $(FUZZTIME)

race:
	GO='$(GO)' .ci/race $(RACE)

gotest:
	GO='$(GO)' .ci/gotest ./...

# The Go benchmarks, then the program that measures beside dd and cp (see docs/performance.md).
bench:
	$(GO) test -run '^$$' -bench . -benchmem ./...
	$(GO) run ./bench $(BENCH)

# The tests that kill, crash, break and compete, at full length, MinIO, the
# simulation of large disks and fuzzing, for as long as SOAK says.
soak:
	GO='$(GO)' .ci/soak $(SOAK)

clean:
	rm -rf bin dist

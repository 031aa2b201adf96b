package frame

import (
	"context"
	"net/http"

	"github.com/danielgtaylor/huma/v2"
)

// None is a request without body or parameters.
type None struct{}

// In is a request that is a body and nothing else, Out an answer.
type (
	In[B any]  struct{ Body B }
	Out[B any] struct{ Body B }
)

// maxBody bounds the body of a request.
const maxBody = 1 << 20

// Route adds an operation. Its id is what generated clients call it; change may
// alter what the API says of it.
func Route[I, O any](s *Frame, id, method, path, summary string, fn func(context.Context, *I) (*O, error), change ...func(*huma.Operation)) {
	o := huma.Operation{
		OperationID: id, Method: method, Path: path, Summary: summary,
		MaxBodyBytes: maxBody,
		// A deadline for the body would go on to end the request; who may connect
		// is the owner of the server.
		BodyReadTimeout: -1,
	}
	for _, f := range change {
		f(&o)
	}
	huma.Register(s.API, o, func(ctx context.Context, i *I) (*O, error) {
		r, err := fn(ctx, i)
		if err != nil {
			p := ProblemOf(err)
			if p.Status >= http.StatusInternalServerError {
				// Who asked is told; this is for who reads the server's log.
				s.Log.Info("request failed", "operation", id, "error", p.Detail)
			}
			return nil, p
		}
		return r, nil
	})
}

// Status sets the HTTP status of success.
func Status(n int) func(*huma.Operation) {
	return func(o *huma.Operation) { o.DefaultStatus = n }
}

// MachinePath names a machine.
type MachinePath struct {
	Name string `path:"name"`
}

// PointPath names a recovery point.
type PointPath struct {
	Point string `path:"point" doc:"id or unique prefix, NAME@latest, NAME@TIME"`
}

// OfMachine narrows a list to a machine.
type OfMachine struct {
	Machine string `query:"machine" doc:"name of a machine; empty = all"`
}

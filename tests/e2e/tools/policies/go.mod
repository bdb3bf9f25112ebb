module kagami.dev/e2e/policies

go 1.26.0

// Nothing is built of these as dependencies: scripts/tools builds them in their own folders, by their own go.mod
// and go.sum. So `go mod tidy` would remove them; `go mod download MODULE` writes go.sum.
require (
	github.com/kyverno/kyverno v1.19.1
	github.com/open-policy-agent/gatekeeper/v3 v3.23.1
)

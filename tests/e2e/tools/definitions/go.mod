module kagami.dev/e2e/definitions

go 1.26.0

// Nothing is built of these: scripts/tools takes the resource definitions that lie in them. So `go mod tidy`
// would remove them; `go mod download MODULE` writes go.sum.
require (
	github.com/cert-manager/cert-manager v1.19.1
	github.com/prometheus-operator/prometheus-operator v0.85.0
)

module referrers-registry

go 1.26.0

tool referrers-registry

require github.com/google/go-containerregistry v0.22.1

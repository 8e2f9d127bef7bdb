// trivy-database makes a small vulnerability database for Trivy, with its own writer: trivy-database FOLDER < entries.json
package main

import (
	"encoding/json"
	"log"
	"os"
	"time"

	"github.com/aquasecurity/trivy-db/pkg/db"
	"github.com/aquasecurity/trivy-db/pkg/metadata"
	"github.com/aquasecurity/trivy-db/pkg/types"
	bolt "go.etcd.io/bbolt"
)

const python = "pip::GitHub Security Advisory Pip"

type entries struct {
	// Built is when the database says that it was built.
	Built           time.Time `json:"built"`
	Vulnerabilities []entry   `json:"vulnerabilities"`
}

type entry struct {
	ID       string `json:"id"`
	Severity string `json:"severity"`
	Package  string `json:"package"`
	// Fixed is the first version that does not have it; empty if there is none yet.
	Fixed string `json:"fixed"`
	// System is such as "debian 12"; empty for packages of Python.
	System string `json:"system"`
}

func main() {
	var asked entries
	must(json.NewDecoder(os.Stdin).Decode(&asked))
	folder := os.Args[1]
	must(db.Init(folder))
	store := db.Config{}
	must(store.BatchUpdate(func(transaction *bolt.Tx) error {
		for _, one := range asked.Vulnerabilities {
			must(write(store, transaction, one))
		}
		return nil
	}))
	must(db.Close())
	must(metadata.NewClient(folder).Update(metadata.Metadata{
		Version: 2, UpdatedAt: asked.Built.UTC(), DownloadedAt: asked.Built.UTC(),
		NextUpdate: time.Now().UTC().Add(24 * time.Hour),
	}))
}

func write(store db.Config, transaction *bolt.Tx, one entry) error {
	bucket, advisory := one.System, types.Advisory{FixedVersion: one.Fixed}
	source := types.DataSource{ID: "debian", Name: "Debian Security Tracker"}
	if bucket == "" {
		bucket, advisory = python, types.Advisory{VulnerableVersions: []string{"<" + one.Fixed}, PatchedVersions: []string{one.Fixed}}
		source = types.DataSource{ID: "ghsa", Name: "GitHub Security Advisory Pip"}
	}
	must(store.PutDataSource(transaction, bucket, source))
	must(store.PutAdvisory(transaction, []string{bucket, one.Package}, one.ID, advisory))
	must(store.PutVulnerability(transaction, one.ID, types.Vulnerability{Title: "made up", Severity: one.Severity}))
	return store.PutVulnerabilityID(transaction, one.ID)
}

func must(err error) {
	if err != nil {
		log.Fatal(err)
	}
}

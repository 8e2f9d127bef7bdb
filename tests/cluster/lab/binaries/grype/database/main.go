// database makes a small vulnerability database for Grype, with Grype's own writer: database FOLDER < entries.json
package main

import (
	"encoding/json"
	"log"
	"os"
	"time"

	db "github.com/anchore/grype/grype/db/v6"
	"github.com/spf13/afero"
)

type entries struct {
	// Built is when the database says that it was built.
	Built           time.Time `json:"built"`
	Vulnerabilities []entry   `json:"vulnerabilities"`
}

type entry struct {
	ID        string   `json:"id"`
	Aliases   []string `json:"aliases"`
	Severity  string   `json:"severity"`
	Ecosystem string   `json:"ecosystem"`
	Package   string   `json:"package"`
	// Fixed is the first version that does not have it; empty if there is none yet.
	Fixed    string `json:"fixed"`
	System   string `json:"system"`
	Major    string `json:"major"`
	Codename string `json:"codename"`
}

func main() {
	var asked entries
	must(json.NewDecoder(os.Stdin).Decode(&asked))
	folder := os.Args[1]
	store, err := db.NewWriter(db.Config{DBDirPath: folder, CacheSizeKiB: 1024})
	must(err)
	must(store.SetDBMetadata())
	for _, one := range asked.Vulnerabilities {
		must(write(store, one))
	}
	must(store.Close())
	low, err := db.NewLowLevelDB(db.Config{DBDirPath: folder}.DBFilePath(), false, true, false)
	must(err)
	must(low.Model(&db.DBMetadata{}).Where("true").Update("build_timestamp", asked.Built.UTC()).Error)
	connection, err := low.DB()
	must(err)
	must(connection.Close())
	_, err = db.WriteImportMetadata(afero.NewOsFs(), folder, "hand-made")
	must(err)
}

func write(store db.ReadWriter, one entry) error {
	captured := time.Now().UTC()
	provider := &db.Provider{ID: "github", Version: "1", Processor: "hand-made", DateCaptured: &captured}
	var system *db.OperatingSystem
	kind := "python"
	if one.System != "" {
		provider.ID = one.System
		system = &db.OperatingSystem{
			Name: one.System, ReleaseID: one.System, MajorVersion: one.Major, Codename: one.Codename,
		}
		kind = "dpkg"
	}
	blob := &db.VulnerabilityBlob{
		ID: one.ID, Aliases: one.Aliases,
		Severities: []db.Severity{{Scheme: db.SeveritySchemeCHMLN, Value: one.Severity, Rank: 1}},
	}
	found := &db.VulnerabilityHandle{
		Name: one.ID, Status: db.VulnerabilityActive, ProviderID: provider.ID, Provider: provider, BlobValue: blob,
	}
	if err := store.AddVulnerabilities(found); err != nil {
		return err
	}
	affected := db.Range{Version: db.Version{Type: kind}, Fix: &db.Fix{State: db.NotFixedStatus}}
	if one.Fixed != "" {
		affected.Version.Constraint = "< " + one.Fixed
		affected.Fix = &db.Fix{Version: one.Fixed, State: db.FixedStatus}
	}
	return store.AddAffectedPackages(&db.AffectedPackageHandle{
		VulnerabilityID: found.ID, Vulnerability: found, OperatingSystem: system,
		Package:   &db.Package{Ecosystem: one.Ecosystem, Name: one.Package},
		BlobValue: &db.PackageBlob{Ranges: []db.Range{affected}},
	})
}

func must(err error) {
	if err != nil {
		log.Fatal(err)
	}
}

"""The buttons that lead from a task to the endpoint's page, a version's log, the endpoint's requests, a report."""

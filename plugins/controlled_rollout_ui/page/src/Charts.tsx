import { Box, Table, Text } from "@chakra-ui/react";

import { Chart, type Line } from "./Chart";
import { Disclosure, Scrollable } from "./Parts";
import type { ClaimSeries, Comparison, VersionCounts } from "./types";
import { count, percent } from "./words";

const CONTROL = "blue";
const TREATMENT = "orange";
const CLAIM_PALETTES = ["orange", "purple", "blue", "green", "red", "gray"];
// What a logarithmic axis cannot show is drawn at its lower end.
const LEAST_EVIDENCE = 1e-4;

/** Control against treatment over time: what callers saw, and the evidence for each claim. */
export const Charts = ({ comparison }: { comparison: Comparison }) => {
  const { control, treatment, control_counts, treatment_counts, times, marks, quantiles } = comparison;
  const both = (of: (counts: VersionCounts) => readonly (number | null)[]): Line[] => [
    { label: `${treatment} (treatment)`, values: of(treatment_counts), palette: TREATMENT },
    { label: `${control} (control)`, values: of(control_counts), palette: CONTROL, dashed: true },
  ];
  const shared = { times, marks };
  return (
    <Box>
      <Chart
        {...shared}
        title={`Requests in ${comparison.span_seconds} s`}
        lines={both((counts) => counts.requests)}
        description={describe(
          both((counts) => counts.requests),
          count,
        )}
        format={count}
      />
      <Chart
        {...shared}
        title="Share of requests that failed"
        lines={both((counts) => counts.error_rate)}
        description={describe(
          both((counts) => counts.error_rate),
          share,
        )}
        format={share}
      />
      {quantiles.map(({ quantile, threshold_ms, usual }, index) => {
        const lines = both((counts) => counts.slower[index] ?? []);
        return (
          <Chart
            {...shared}
            key={quantile}
            title={`Share of requests slower than ${Number(threshold_ms.toPrecision(3))} ms, control's ${percent(quantile * 100)} quantile before the rollout`}
            lines={lines}
            description={describe(lines, share)}
            threshold={{ value: usual, label: `before the rollout: ${share(usual)}` }}
            format={share}
          />
        );
      })}
      <EvidenceCharts comparison={comparison} />
      <Claims claims={comparison.claims} />
    </Box>
  );
};

/** The evidence of each claim as a multiple of its threshold: claims with different thresholds share a chart. */
const EvidenceCharts = ({ comparison }: { comparison: Comparison }) => {
  const groups = [
    { title: "Evidence about what callers saw", claims: comparison.claims.filter((claim) => !claim.about_data) },
    {
      title: "Evidence about the data that versions collect",
      claims: comparison.claims.filter((claim) => claim.about_data),
    },
  ];
  return (
    <>
      {groups
        .filter(({ claims }) => claims.length > 0 && comparison.look_times.length > 0)
        .map(({ title, claims }) => (
          <Chart
            key={title}
            title={`${title}: e-value as a multiple of its threshold`}
            description={claims.map(claimInWords).join(" ")}
            times={comparison.look_times}
            marks={comparison.marks}
            lines={claims.map((claim, index) => ({
              label: claim.name,
              values: claim.e_values.map((value) =>
                value === null ? null : Math.max(value / claim.threshold, LEAST_EVIDENCE),
              ),
              palette: CLAIM_PALETTES[index % CLAIM_PALETTES.length] ?? CONTROL,
              dashed: claim.kind !== "alarm",
            }))}
            threshold={{ value: 1, label: "threshold: established" }}
            logarithmic
            format={(value) => `${Number(value.toPrecision(2))}`}
          />
        ))}
    </>
  );
};

const Claims = ({ claims }: { claims: readonly ClaimSeries[] }) =>
  claims.length === 0 ? null : (
    <Disclosure title="Claims and their evidence in numbers">
      <Scrollable name="Claims">
        <Table.Root size="sm">
          <Table.Header>
            <Table.Row>
              {["Claim", "Evidence", "Threshold", "Established", "Numbers", "Meaning"].map((name) => (
                <Table.ColumnHeader key={name}>{name}</Table.ColumnHeader>
              ))}
            </Table.Row>
          </Table.Header>
          <Table.Body>
            {claims.map((claim) => (
              <Table.Row key={claim.name}>
                <Table.Cell minW="10em">{claim.name}</Table.Cell>
                <Table.Cell>{lastOf(claim.e_values)?.toPrecision(3) ?? "–"}</Table.Cell>
                <Table.Cell>{claim.threshold.toPrecision(3)}</Table.Cell>
                <Table.Cell>{claim.reached ? "yes" : "no"}</Table.Cell>
                <Table.Cell minW="12em">
                  {claim.detail}
                  {claim.needed_requests !== null && (
                    <Text>about {count(claim.needed_requests)} more treatment requests are needed</Text>
                  )}
                </Table.Cell>
                <Table.Cell minW="16em">{claim.meaning}</Table.Cell>
              </Table.Row>
            ))}
          </Table.Body>
        </Table.Root>
      </Scrollable>
    </Disclosure>
  );

const share = (value: number): string => percent(value * 100);

const lastOf = (values: readonly (number | null)[]): number | null =>
  values.findLast((value) => value !== null) ?? null;

function describe(lines: readonly Line[], format: (value: number) => string): string {
  return lines
    .map(({ label, values }) => {
      const last = lastOf(values);
      return `${label}: newest ${last === null ? "none" : format(last)}.`;
    })
    .join(" ");
}

function claimInWords(claim: ClaimSeries): string {
  const last = lastOf(claim.e_values);
  return `${claim.name}: ${last === null ? "not judged" : last.toPrecision(3)} of ${claim.threshold.toPrecision(3)}${claim.reached ? ", established" : ""}.`;
}

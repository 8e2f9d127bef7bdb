import { Table, Text } from "@chakra-ui/react";
import type { ReactNode } from "react";

import { Disclosure, Scrollable, Time, Who } from "./Parts";
import type { Comparison, EndpointDetail } from "./types";
import { count, OUTCOMES, percent } from "./words";

/** Who has changed the endpoint, when and why. */
export const History = ({ detail }: { detail: EndpointDetail }) => (
  <Disclosure title={`History: ${detail.history.length + detail.older_revisions} revisions`} open>
    <Rows name="History" columns={["Revision", "When", "What", "Who", "Reason"]}>
      {detail.history.map((entry) => (
        <Table.Row key={entry.revision}>
          <Table.Cell>{entry.revision}</Table.Cell>
          <Table.Cell whiteSpace="nowrap">
            <Time at={entry.time} />
          </Table.Cell>
          <Table.Cell minW="10em">{entry.what}</Table.Cell>
          <Table.Cell minW="14em">
            <Who who={entry.who} run={entry.run} />
          </Table.Cell>
          <Table.Cell minW="12em">{entry.reason}</Table.Cell>
        </Table.Row>
      ))}
    </Rows>
    {detail.older_revisions > 0 && <Text fontSize="sm">{detail.older_revisions} older revisions are not shown.</Text>}
  </Disclosure>
);

/** What the gate has seen and concluded, look by look. */
export const Looks = ({ comparison }: { comparison: Comparison }) => (
  <Disclosure title={`Looks: ${comparison.look_count}, the newest first`}>
    <Rows name="Looks" columns={["When", "Outcome", "Traffic", "Requests: treatment, control", "Reason"]}>
      {comparison.looks.map((look) => (
        <Table.Row key={look.time}>
          <Table.Cell whiteSpace="nowrap">
            <Time at={look.time} />
          </Table.Cell>
          <Table.Cell minW="10em">{OUTCOMES[look.outcome]}</Table.Cell>
          <Table.Cell>{percent(look.share)}</Table.Cell>
          <Table.Cell>
            {count(look.treatment_requests)}, {count(look.control_requests)}
          </Table.Cell>
          <Table.Cell minW="16em">{look.reason}</Table.Cell>
        </Table.Row>
      ))}
    </Rows>
  </Disclosure>
);

const Rows = ({ name, columns, children }: { name: string; columns: readonly string[]; children: ReactNode }) => (
  <Scrollable name={name}>
    <Table.Root size="sm">
      <Table.Header>
        <Table.Row>
          {columns.map((column) => (
            <Table.ColumnHeader key={column}>{column}</Table.ColumnHeader>
          ))}
        </Table.Row>
      </Table.Header>
      <Table.Body>{children}</Table.Body>
    </Table.Root>
  </Scrollable>
);

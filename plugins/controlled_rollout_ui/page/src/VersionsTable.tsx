import { Button, Code, HStack, Table, Text } from "@chakra-ui/react";

import { RowHeader, Scrollable, Time, Who } from "./Parts";
import type { VersionOverview } from "./types";
import { count, healthOf, percent } from "./words";

const COLUMNS = ["Version", "Set", "Effective", "Served", "State", "Requests", "Image", "Created", "Actions"];

type Props = {
  versions: readonly VersionOverview[];
  onAct: (version: string) => void;
  onLog: (version: string) => void;
};

/** The endpoint's versions, a row each. */
export const VersionsTable = ({ versions, onAct, onLog }: Props) => (
  <Scrollable name="Versions">
    <Table.Root size="sm">
      <Table.Header>
        <Table.Row>
          {COLUMNS.map((name) => (
            <Table.ColumnHeader key={name}>{name}</Table.ColumnHeader>
          ))}
        </Table.Row>
      </Table.Header>
      <Table.Body>
        {versions.map((version) => (
          <Table.Row key={version.name}>
            <RowHeader>
              {version.name}
              <Text fontSize="xs" fontWeight="normal">
                {version.role}
                {version.is_default ? ", default" : ""}
              </Text>
            </RowHeader>
            <Table.Cell>{percent(version.traffic.percentile)}</Table.Cell>
            <Table.Cell>{percent(version.traffic.effective)}</Table.Cell>
            <Table.Cell>{percent(version.traffic.served)}</Table.Cell>
            <Table.Cell minW="10em">
              {healthOf(version)}
              {version.cause && <Text fontSize="xs">{version.cause}</Text>}
              {version.replicas?.scaling && <Text fontSize="xs">{version.replicas.scaling}</Text>}
            </Table.Cell>
            <Table.Cell>
              {count(version.requests)}
              <Text fontSize="xs">{count(version.active)} now</Text>
            </Table.Cell>
            <Table.Cell>
              <Code title={version.image} fontSize="xs">
                {shortDigest(version)}
              </Code>
            </Table.Cell>
            <Table.Cell minW="10em">
              {version.created && <Time at={version.created} />}
              <Text fontSize="xs">
                <Who who={version.created_by} run={version.created_run} />
              </Text>
            </Table.Cell>
            <Table.Cell>
              <HStack>
                <Button
                  size="xs"
                  variant="outline"
                  borderColor="border.emphasized"
                  onClick={() => onAct(version.name)}
                  aria-label={`Act on ${version.name}`}
                >
                  Act…
                </Button>
                <Button
                  size="xs"
                  variant="outline"
                  borderColor="border.emphasized"
                  onClick={() => onLog(version.name)}
                  aria-label={`Log of ${version.name}`}
                >
                  Log
                </Button>
              </HStack>
            </Table.Cell>
          </Table.Row>
        ))}
      </Table.Body>
    </Table.Root>
  </Scrollable>
);

function shortDigest({ digest, image }: VersionOverview): string {
  return digest ? digest.replace(/^sha256:/, "").slice(0, 12) : image.split("/").at(-1) || image;
}

import { Box, Flex, Heading, Input, SimpleGrid, Spinner, Text } from "@chakra-ui/react";
import { useState } from "react";

import { paths } from "./api";
import { Notice, PageLink, StateBadge } from "./Parts";
import { endpointAddress } from "./routes";
import { TrafficBar } from "./TrafficBar";
import type { EndpointOverview, Overview as OverviewAnswer, WorkspaceOverview } from "./types";
import { usePolled } from "./usePolled";
import { useTitle } from "./useTitle";
import { STATES } from "./words";

const FILTER_FROM = 8;
const isLoading = (overview: OverviewAnswer) => overview.workspaces.some((workspace) => workspace.loading);

/** Every endpoint of every workspace, those first that need a person. */
export const Overview = () => {
  const { data, error } = usePolled<OverviewAnswer>(paths.overview, { isLoading });
  useTitle("Rollouts");
  const [wanted, setWanted] = useState("");
  const all = (data?.workspaces ?? []).flatMap((workspace) => workspace.endpoints);
  const endpoints = all
    .filter((endpoint) => `${endpoint.name} ${endpoint.workspace}`.toLowerCase().includes(wanted.trim().toLowerCase()))
    .sort((one, other) => STATES[one.state].rank - STATES[other.state].rank || one.name.localeCompare(other.name));
  return (
    <Box p={{ base: 2, md: 4 }}>
      <Heading as="h1" size="xl" mb={2}>
        Rollouts
      </Heading>
      {error && <Notice status="error">{error.message}</Notice>}
      {!data && !error && <Spinner aria-label="Loading" />}
      {data?.workspaces.map((workspace) => (
        <WorkspaceNotice key={workspace.workspace} workspace={workspace} />
      ))}
      {data && (
        <Text role="status" mb={2}>
          {summaryOf(all)}
        </Text>
      )}
      {all.length > FILTER_FROM && (
        <Input
          aria-label="Show only endpoints whose name contains"
          placeholder="Filter by name"
          value={wanted}
          onChange={(event) => setWanted(event.target.value)}
          maxW="sm"
          mb={3}
        />
      )}
      {data && endpoints.length === 0 && <Nothing data={data} wanted={wanted} />}
      <SimpleGrid columns={{ base: 1, lg: 2 }} gap={3}>
        {endpoints.map((endpoint) => (
          <EndpointCard key={`${endpoint.workspace}/${endpoint.name}`} endpoint={endpoint} />
        ))}
      </SimpleGrid>
    </Box>
  );
};

/** Say how many endpoints there are in each state. */
export function summaryOf(endpoints: readonly EndpointOverview[]): string {
  const counts = Object.entries(STATES)
    .map(([state, { label }]) => ({ label, number: endpoints.filter((endpoint) => endpoint.state === state).length }))
    .filter(({ number }) => number > 0)
    .map(({ label, number }) => `${number} ${label.toLowerCase()}`);
  const total = `${endpoints.length} ${endpoints.length === 1 ? "endpoint" : "endpoints"}`;
  return counts.length ? `${total}: ${counts.join(", ")}` : total;
}

/** What to do where no endpoint is shown. */
const Nothing = ({ data, wanted }: { data: OverviewAnswer; wanted: string }) => {
  if (wanted.trim() !== "") return <Text role="status">No endpoint has “{wanted.trim()}” in its name.</Text>;
  // A workspace that is being read or does not answer says so by itself.
  if (data.workspaces.some((workspace) => workspace.loading || workspace.problem)) return null;
  return <Text>The first run of a DAG with a rollout makes an endpoint, and so does controlled-rollout deploy.</Text>;
};

const WorkspaceNotice = ({ workspace }: { workspace: WorkspaceOverview }) => {
  if (workspace.problem) {
    return (
      <Notice status="error">
        Workspace {workspace.workspace} does not answer: {workspace.problem}
      </Notice>
    );
  }
  if (workspace.loading) return <Notice status="info">Reading workspace {workspace.workspace} …</Notice>;
  if (workspace.more > 0) {
    return (
      <Notice status="info">
        {workspace.more} more endpoints of workspace {workspace.workspace} are not shown.
      </Notice>
    );
  }
  return null;
};

const EndpointCard = ({ endpoint }: { endpoint: EndpointOverview }) => {
  const { rollout } = endpoint;
  const attention = endpoint.attention ?? endpoint.trouble;
  return (
    <Box
      as="article"
      aria-label={`Endpoint ${endpoint.name}`}
      borderWidth={1}
      borderColor="border.emphasized"
      borderRadius="md"
      p={3}
      minW={0}
    >
      <Flex gap={2} alignItems="center" flexWrap="wrap">
        <Heading as="h2" size="md">
          <PageLink to={endpointAddress(endpoint.workspace, endpoint.name)}>{endpoint.name}</PageLink>
        </Heading>
        <StateBadge state={endpoint.state} />
        <Text fontSize="sm" color="fg.muted">
          {endpoint.workspace}
        </Text>
      </Flex>
      {attention && attention !== endpoint.problem && <Notice status="warning">{attention}</Notice>}
      {endpoint.problem && <Notice status="error">{endpoint.problem}</Notice>}
      <TrafficBar versions={endpoint.versions} />
      {rollout && (
        <Text fontSize="sm" wordBreak="break-word">
          Rollout of <b>{rollout.version}</b> at {rollout.step}, waits for {rollout.waiting_for}
        </Text>
      )}
    </Box>
  );
};

import { Box, Button, Flex, Heading, HStack, Spinner, Text } from "@chakra-ui/react";
import { useState } from "react";
import { useSearchParams } from "react-router-dom";

import { ActionDialog } from "./ActionDialog";
import { paths } from "./api";
import { Charts } from "./Charts";
import { History, Looks } from "./History";
import { LogTail } from "./LogTail";
import { Copyable, Disclosure, Notice, PageLink, StateBadge, Time, Who } from "./Parts";
import { HOME } from "./routes";
import { type StartedRun, StartedRunNotice } from "./StartedRun";
import { TrafficBar } from "./TrafficBar";
import type { EndpointDetail, EndpointOverview, RolloutOverview } from "./types";
import { usePolled } from "./usePolled";
import { useTitle } from "./useTitle";
import { Verdict } from "./Verdict";
import { VersionsTable } from "./VersionsTable";
import { ACTIONS, type ActionName } from "./words";

const isLoading = (detail: EndpointDetail) => detail.loading;

/** One endpoint's page. */
export const Endpoint = ({ workspace, name }: { workspace: string; name: string }) => {
  useTitle(`${name} - Rollouts`);
  const { data, error } = usePolled<EndpointDetail>(paths.endpoint(workspace, name), { isLoading });
  return (
    <Box p={{ base: 2, md: 4 }}>
      <PageLink to={HOME}>All endpoints</PageLink>
      {error && <Notice status="error">{error.message}</Notice>}
      {!data && !error && <Spinner aria-label="Loading" />}
      {data && <EndpointBody detail={data} />}
    </Box>
  );
};

type Acting = { version: string; action: ActionName };

/** What an endpoint's page and a run's tab show. */
export const EndpointBody = ({ detail }: { detail: EndpointDetail }) => {
  const { overview, comparison } = detail;
  const [parameters, setParameters] = useSearchParams();
  const [acting, setActing] = useState<Acting>();
  const [started, setStarted] = useState<StartedRun>();
  const logOf = parameters.get("version");
  const showLog = (version: string | null) => setParameters(version ? { version } : {}, { replace: true });
  return (
    <>
      <Flex gap={3} alignItems="center" flexWrap="wrap" my={2}>
        <Heading as="h1" size="xl" wordBreak="break-word">
          {overview.name}
        </Heading>
        <StateBadge state={overview.state} />
        <Text fontSize="sm" color="fg.muted">
          {overview.workspace}
        </Text>
      </Flex>
      <Notices overview={overview} />
      {started && <StartedRunNotice run={started} />}
      {overview.rollout && <Rollout rollout={overview.rollout} onAct={setActing} />}
      {comparison?.verdict && <Verdict verdict={comparison.verdict} />}
      <TrafficBar versions={overview.versions} />
      <VersionsTable
        versions={overview.versions}
        onAct={(version) => setActing({ version, action: version === overview.control ? "roll_back" : "promote" })}
        onLog={showLog}
      />
      {logOf && (
        <LogTail
          key={logOf}
          workspace={overview.workspace}
          endpoint={overview.name}
          version={logOf}
          onClose={() => showLog(null)}
        />
      )}
      {detail.record_problem && <Notice status="error">{detail.record_problem}</Notice>}
      {comparison && (
        <Box as="section" aria-label="Control against treatment">
          <Heading as="h2" size="md" mt={4}>
            {comparison.treatment} against {comparison.control}: {comparison.end}
          </Heading>
          <Charts comparison={comparison} />
          <Looks comparison={comparison} />
        </Box>
      )}
      <History detail={detail} />
      <Commands detail={detail} />
      {acting && (
        <ActionDialog
          overview={overview}
          version={acting.version}
          action={acting.action}
          onClose={() => setActing(undefined)}
          onStarted={setStarted}
        />
      )}
    </>
  );
};

const Notices = ({ overview }: { overview: EndpointOverview }) => (
  <>
    {overview.problem && (
      <Notice status="error">
        {overview.problem} {overview.read && <>What follows is of {<Time at={overview.read} />}.</>}
      </Notice>
    )}
    {overview.attention && overview.attention !== overview.problem && (
      <Notice status="warning">{overview.attention}</Notice>
    )}
    {overview.trouble && overview.trouble !== overview.attention && <Notice status="error">{overview.trouble}</Notice>}
    {overview.waiting_for && <Notice status="info">{overview.waiting_for}</Notice>}
    {overview.warnings.map((warning) => (
      <Notice key={warning} status="warning">
        {warning}
      </Notice>
    ))}
    {overview.waiting_runs > 0 && (
      <Notice status="info">Runs that wait until this rollout has ended: {overview.waiting_runs}</Notice>
    )}
  </>
);

/** What may help: a rollout that is on hold is not put on hold. */
const actionsOn = ({ held }: RolloutOverview): ActionName[] =>
  (Object.keys(ACTIONS) as ActionName[]).filter((action) => action !== "hold" || held === null);

const Rollout = ({ rollout, onAct }: { rollout: RolloutOverview; onAct: (acting: Acting) => void }) => (
  <Box as="section" aria-label="Rollout" borderWidth={1} borderColor="border.emphasized" borderRadius="md" p={3} my={3}>
    <Text>
      Rollout of <b>{rollout.version}</b> by <Who who={rollout.owner} run={rollout.run} /> since{" "}
      <Time at={rollout.started} />, at{" "}
      <Box as="b" whiteSpace="nowrap">
        {rollout.step}
      </Box>
    </Text>
    <Text role="status">Waits for {rollout.waiting_for}</Text>
    {rollout.silence && <Text fontSize="sm">{rollout.silence}</Text>}
    <HStack mt={2} flexWrap="wrap">
      {actionsOn(rollout).map((action) => (
        <Button
          key={action}
          size={{ base: "md", md: "sm" }}
          variant="outline"
          borderColor="border.emphasized"
          onClick={() => onAct({ version: rollout.version, action })}
        >
          {ACTIONS[action]}…
        </Button>
      ))}
    </HStack>
  </Box>
);

const Commands = ({ detail }: { detail: EndpointDetail }) => (
  <Disclosure title="Send a request, and the same from a terminal">
    <Copyable name="A request" text={detail.curl} />
    {detail.command_line.map((command) => (
      <Copyable key={command} name="In a terminal" text={command} />
    ))}
  </Disclosure>
);

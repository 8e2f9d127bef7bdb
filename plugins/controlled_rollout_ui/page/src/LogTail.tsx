import { Box, Button, Heading, HStack, Spinner, Text } from "@chakra-ui/react";
import { useEffect, useState } from "react";

import { paths, request } from "./api";
import { Notice, Preformatted } from "./Parts";
import type { LogTail as LogAnswer } from "./types";

type Props = { workspace: string; endpoint: string; version: string; onClose: () => void };

/** The last lines of a version's log; read when it is opened and when a person asks again. */
export const LogTail = ({ workspace, endpoint, version, onClose }: Props) => {
  const [log, setLog] = useState<LogAnswer>();
  const [error, setError] = useState("");
  const [readings, setReadings] = useState(0);
  // biome-ignore lint/correctness/useExhaustiveDependencies: another reading is a reason to ask again.
  useEffect(() => {
    const controller = new AbortController();
    request<LogAnswer>(paths.log(workspace, endpoint, version), { signal: controller.signal }).then(
      (answer) => {
        setLog(answer.data);
        setError("");
      },
      (failure: Error) => controller.signal.aborted || setError(failure.message),
    );
    return () => controller.abort();
  }, [workspace, endpoint, version, readings]);
  return (
    <Box as="section" aria-label={`Log of ${version}`} my={3}>
      <HStack flexWrap="wrap">
        <Heading as="h2" size="md">
          Log of {version}
        </Heading>
        <Button size="xs" variant="outline" borderColor="border.emphasized" onClick={() => setReadings(readings + 1)}>
          Read again
        </Button>
        <Button size="xs" variant="outline" borderColor="border.emphasized" onClick={onClose}>
          Close
        </Button>
      </HStack>
      {error && (
        <Notice status="error" isAnnounced>
          {error}
        </Notice>
      )}
      {!log && !error && <Spinner aria-label="Reading the log" />}
      {log?.cut && <Text fontSize="sm">Older lines are left out.</Text>}
      {log && <Preformatted name={`Last lines of ${version}`} text={log.text || "The log is empty."} />}
    </Box>
  );
};

import { Box, Text } from "@chakra-ui/react";

import { Disclosure, Time } from "./Parts";
import type { VerdictExplanation } from "./types";
import { OUTCOMES } from "./words";

/** The newest verdict in a sentence, and what it means a click away. */
export const Verdict = ({ verdict }: { verdict: VerdictExplanation }) => (
  <Box as="section" aria-label="Verdict" borderWidth={1} borderColor="border.emphasized" borderRadius="md" p={3} my={3}>
    <Text fontWeight="semibold">
      {OUTCOMES[verdict.outcome]}: {verdict.sentence}
    </Text>
    <Text fontSize="sm" color="fg.muted">
      Looked at <Time at={verdict.time} />
    </Text>
    <Disclosure title="What does this mean?">
      {verdict.explanation.map((sentence) => (
        <Text key={sentence} mb={2}>
          {sentence}
        </Text>
      ))}
      <Text fontSize="sm">The gate's own words: {verdict.reason}</Text>
    </Disclosure>
  </Box>
);

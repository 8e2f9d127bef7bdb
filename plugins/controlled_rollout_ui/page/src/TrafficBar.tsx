import { Box, Flex } from "@chakra-ui/react";

import { palettes } from "./colours";
import type { VersionOverview } from "./types";
import { healthOf, percent } from "./words";

const shareOf = (version: VersionOverview) => version.traffic.served ?? version.traffic.effective;

/** The versions' shares of the requests as one bar, and each of them in words below it. */
export const TrafficBar = ({ versions }: { versions: readonly VersionOverview[] }) => {
  const palette = palettes(versions);
  const words = versions.map((version) => `${version.name} ${percent(shareOf(version))}`).join(", ");
  return (
    <Box my={2}>
      <Flex
        role="img"
        aria-label={`Traffic: ${words || "none"}`}
        height={3}
        borderRadius="sm"
        overflow="hidden"
        bg="bg.emphasized"
      >
        {versions.map((version) => (
          <Box
            key={version.name}
            width={`${shareOf(version)}%`}
            bg={`${palette[version.name]}.solid`}
            borderRightWidth={1}
            borderColor="bg"
          />
        ))}
      </Flex>
      <Box as="ul" listStyleType="none" mt={1} fontSize="sm">
        {versions.map((version) => (
          <Box as="li" key={version.name} display="flex" gap={2} alignItems="baseline">
            <Box as="span" aria-hidden="true" flexShrink={0} boxSize={2} bg={`${palette[version.name]}.solid`} />
            <Box as="span" minW={0} wordBreak="break-word">
              <b>{version.name}</b> {version.role}, {percent(shareOf(version))}, {healthOf(version)}
            </Box>
          </Box>
        ))}
      </Box>
    </Box>
  );
};

import { Alert, Badge, Box, Button, Link, Table } from "@chakra-ui/react";
import { type ReactNode, useState } from "react";
import { Link as RouterLink } from "react-router-dom";

import type { EndpointOverview, RunReference } from "./types";
import { localTime, STATES } from "./words";

type NoticeProps = { status: "error" | "warning" | "info"; isAnnounced?: boolean; children: ReactNode };

/** A sentence that a person should read; one that answers what they have just done is also read out. */
export const Notice = ({ status, isAnnounced = false, children }: NoticeProps) => (
  <Alert.Root
    status={status}
    size="sm"
    my={2}
    {...(isAnnounced ? { role: status === "error" ? "alert" : "status" } : {})}
  >
    <Alert.Indicator />
    <Alert.Title fontWeight="normal" wordBreak="break-word">
      {children}
    </Alert.Title>
  </Alert.Root>
);

export const StateBadge = ({ state }: { state: EndpointOverview["state"] }) => (
  <Badge colorPalette={STATES[state].palette} variant="surface" size="md">
    {STATES[state].label}
  </Badge>
);

/** What can be opened and closed, by mouse and by keyboard. */
export const Disclosure = ({ title, open, children }: { title: string; open?: boolean; children: ReactNode }) => (
  <Box as="details" my={3} {...(open ? { open: true } : {})}>
    <Box as="summary" cursor="pointer" fontWeight="semibold" py={2}>
      {title}
    </Box>
    {children}
  </Box>
);

/** What may be wider than a phone: it scrolls by itself, by keyboard too. */
export const Scrollable = ({ name, children }: { name: string; children: ReactNode }) => (
  <Box as="section" overflowX="auto" tabIndex={0} aria-label={name} maxW="100%" position="relative">
    {children}
  </Box>
);

/** The cell that says what its row is about: screen readers read it with each cell of the row. */
export const RowHeader = ({ fontWeight = "semibold", children }: { fontWeight?: string; children: ReactNode }) => (
  <Table.Cell asChild fontWeight={fontWeight} textAlign="start">
    <th scope="row">{children}</th>
  </Table.Cell>
);

export const Time = ({ at }: { at: string | number }) => {
  const date = new Date(typeof at === "number" ? at * 1000 : at);
  return (
    <time dateTime={date.toISOString()} title={date.toISOString()}>
      {localTime(at)}
    </time>
  );
};

/** Who has done something, with a link to the run that did. */
export const Who = ({ who, run }: { who: string; run: RunReference | null }) =>
  run ? (
    <PageLink to={`/dags/${encodeURIComponent(run.dag_id)}/runs/${encodeURIComponent(run.run_id)}`}>{who}</PageLink>
  ) : (
    who
  );

export const PageLink = ({ to, children }: { to: string; children: ReactNode }) => (
  <Link asChild color="fg.info" textDecoration="underline" wordBreak="break-word">
    <RouterLink to={to}>{children}</RouterLink>
  </Link>
);

/** A command with a button that copies it. */
export const Copyable = ({ name, text }: { name: string; text: string }) => {
  const [done, setDone] = useState("");
  const copy = () =>
    navigator.clipboard
      ? navigator.clipboard.writeText(text).then(
          () => setDone("Copied"),
          () => setDone("Not copied: select the text"),
        )
      : setDone("Not copied: select the text");
  return (
    <Box my={2}>
      <Box display="flex" gap={2} alignItems="center">
        <Box fontSize="sm">{name}</Box>
        <Button size="xs" variant="outline" borderColor="border.emphasized" onClick={copy} aria-label={`Copy: ${name}`}>
          Copy
        </Button>
        <Box as="span" role="status" fontSize="sm">
          {done}
        </Box>
      </Box>
      <Preformatted name={name} text={text} />
    </Box>
  );
};

/** Text as a terminal shows it. */
export const Preformatted = ({ name, text }: { name: string; text: string }) => (
  <Box
    as="pre"
    tabIndex={0}
    role="region"
    aria-label={name}
    fontFamily="mono"
    fontSize="xs"
    bg="bg.muted"
    p={2}
    mt={1}
    overflow="auto"
    maxH="60vh"
    borderRadius="sm"
  >
    {text}
  </Box>
);

import {
  Box,
  Button,
  Checkbox,
  CloseButton,
  Dialog,
  Field,
  Input,
  NativeSelect,
  Portal,
  Spinner,
  Table,
  Text,
  Textarea,
} from "@chakra-ui/react";
import { type FormEvent, useState } from "react";

import { paths, RequestError, send } from "./api";
import { Notice, RowHeader } from "./Parts";
import type { StartedRun } from "./StartedRun";
import { newRunId, startOnce } from "./startOnce";
import type { ActionPreview, EndpointOverview } from "./types";
import { type Previews, useActionPreviews } from "./useActionPreviews";
import { ACTIONS, type ActionName, percent } from "./words";

type Props = {
  overview: EndpointOverview;
  version: string;
  action: ActionName;
  onClose: () => void;
  onStarted: (run: StartedRun) => void;
};

/** Asks for an action on a version: shows the traffic before and after, and wants a reason. */
export const ActionDialog = ({ overview, version, action: firstAction, onClose, onStarted }: Props) => {
  const [action, setAction] = useState(firstAction);
  const [percentile, setPercentile] = useState("10");
  const [isSending, setSending] = useState(false);
  // Whatever is tried again in this dialog is one run: Airflow refuses a second one with its id.
  const [runId] = useState(newRunId);
  const previews = useActionPreviews(overview, version, action, percentile);
  const title = `${ACTIONS[action]}: version ${version} of endpoint ${overview.name}`;
  return (
    <Dialog.Root
      open
      onOpenChange={({ open }) => open || isSending || onClose()}
      scrollBehavior="inside"
      size={{ mdDown: "full", md: "lg" }}
    >
      <Portal>
        <Dialog.Backdrop />
        <Dialog.Positioner>
          <Dialog.Content>
            <Dialog.Header>
              <Dialog.Title wordBreak="break-word">{title}</Dialog.Title>
            </Dialog.Header>
            <Dialog.Body>
              <Choice
                action={action}
                percentile={percentile}
                isDisabled={isSending}
                onAction={setAction}
                onPercentile={setPercentile}
              />
              {previews.error && (
                <Notice status="error" isAnnounced>
                  {previews.error}
                </Notice>
              )}
              {!previews.preview && !previews.error && <Spinner aria-label="Loading" />}
              {previews.preview && (
                <Confirmation
                  previews={previews}
                  preview={previews.preview}
                  title={title}
                  runId={runId}
                  isSending={isSending}
                  onSending={setSending}
                  onClose={onClose}
                  onStarted={onStarted}
                />
              )}
            </Dialog.Body>
            {/* Last, although it is above: the first field has the focus when the dialog opens. */}
            <Dialog.CloseTrigger asChild>
              <CloseButton aria-label="Close" />
            </Dialog.CloseTrigger>
          </Dialog.Content>
        </Dialog.Positioner>
      </Portal>
    </Dialog.Root>
  );
};

type ChoiceProps = {
  action: ActionName;
  percentile: string;
  isDisabled: boolean;
  onAction: (action: ActionName) => void;
  onPercentile: (percentile: string) => void;
};

const Choice = ({ action, percentile, isDisabled, onAction, onPercentile }: ChoiceProps) => (
  <Box display="flex" gap={3} flexWrap="wrap" mb={3}>
    <Field.Root flex="1 1 10em" disabled={isDisabled}>
      <Field.Label>Action</Field.Label>
      <NativeSelect.Root size="sm">
        <NativeSelect.Field value={action} onChange={(event) => onAction(event.currentTarget.value as ActionName)}>
          {Object.entries(ACTIONS).map(([value, label]) => (
            <option key={value} value={value}>
              {label}
            </option>
          ))}
        </NativeSelect.Field>
        <NativeSelect.Indicator />
      </NativeSelect.Root>
    </Field.Root>
    {action === "shift" && (
      <Field.Root flex="1 1 10em" disabled={isDisabled}>
        <Field.Label>Per cent of the traffic</Field.Label>
        <Input
          size="sm"
          type="number"
          min={0}
          max={100}
          step="any"
          value={percentile}
          onChange={(event) => onPercentile(event.target.value)}
        />
      </Field.Root>
    )}
  </Box>
);

type ConfirmationProps = {
  previews: Previews;
  preview: ActionPreview;
  title: string;
  runId: string;
  isSending: boolean;
  onSending: (isSending: boolean) => void;
  onClose: () => void;
  onStarted: (run: StartedRun) => void;
};

const Confirmation = (props: ConfirmationProps) => {
  const { previews, preview, title, runId, isSending, onSending, onClose, onStarted } = props;
  const [reason, setReason] = useState("");
  const [unpause, setUnpause] = useState(true);
  const [error, setError] = useState("");
  const { dag_id } = preview;
  const mayStart = preview.allowed && previews.isCurrent && !previews.dagProblem && reason.trim() !== "" && !isSending;

  const start = async (event: FormEvent) => {
    event.preventDefault();
    if (!mayStart) return;
    onSending(true);
    setError("");
    try {
      if (previews.isPaused && unpause)
        await send("PATCH", `${paths.dag(dag_id)}?update_mask=is_paused`, { is_paused: false });
      await startOnce(dag_id, runId, { ...preview.conf, reason: reason.trim() });
      onStarted({ dagId: dag_id, runId, title });
      onClose();
    } catch (failure) {
      setError(explain(failure, dag_id));
      onSending(false);
    }
  };

  return (
    <form onSubmit={start}>
      <Text mb={2}>{preview.summary}</Text>
      {preview.refusal && (
        <Notice status="error" isAnnounced>
          Not possible now: {preview.refusal}
        </Notice>
      )}
      {preview.ends_rollout_of && <Notice status="warning">This ends the rollout of {preview.ends_rollout_of}.</Notice>}
      <BeforeAndAfter preview={preview} />
      {previews.dagProblem && (
        <Notice status="error" isAnnounced>
          {previews.dagProblem}
        </Notice>
      )}
      {previews.isPaused && preview.allowed && (
        <Checkbox.Root my={2} checked={unpause} onCheckedChange={({ checked }) => setUnpause(checked === true)}>
          <Checkbox.HiddenInput />
          <Checkbox.Control />
          <Checkbox.Label>Un-pause the DAG {dag_id}: it is paused, and a run of it would wait</Checkbox.Label>
        </Checkbox.Root>
      )}
      <Field.Root required my={3}>
        <Field.Label>
          Reason <Field.RequiredIndicator />
        </Field.Label>
        <Textarea
          value={reason}
          onChange={(event) => setReason(event.target.value)}
          disabled={!preview.allowed}
          maxLength={500}
        />
        <Field.HelperText>It is kept in the endpoint's history, with your name.</Field.HelperText>
      </Field.Root>
      {error && (
        <Notice status="error" isAnnounced>
          {error}
        </Notice>
      )}
      <Box display="flex" gap={3} justifyContent="flex-end" mb={2}>
        <Button variant="outline" borderColor="border.emphasized" onClick={onClose} disabled={isSending}>
          Cancel
        </Button>
        <Button type="submit" disabled={!mayStart} loading={isSending}>
          {ACTIONS[preview.action]}
        </Button>
      </Box>
    </form>
  );
};

const BeforeAndAfter = ({ preview }: { preview: ActionPreview }) => (
  <Table.Root size="sm" my={2}>
    <Table.Caption captionSide="top">Traffic before and after</Table.Caption>
    <Table.Header>
      <Table.Row>
        <Table.ColumnHeader>Version</Table.ColumnHeader>
        <Table.ColumnHeader>Now</Table.ColumnHeader>
        <Table.ColumnHeader>Then</Table.ColumnHeader>
      </Table.Row>
    </Table.Header>
    <Table.Body>
      {Object.keys({ ...preview.before, ...preview.after }).map((name) => (
        <Table.Row key={name}>
          <RowHeader fontWeight="normal">{name}</RowHeader>
          <Table.Cell>{percent(preview.before[name])}</Table.Cell>
          <Table.Cell>{preview.after ? percent(preview.after[name]) : "as now"}</Table.Cell>
        </Table.Row>
      ))}
    </Table.Body>
  </Table.Root>
);

function explain(failure: unknown, dagId: string): string {
  if (failure instanceof RequestError && failure.status === 403)
    return `You may not start the DAG ${dagId}: ask for the permission to trigger it.`;
  return failure instanceof Error ? failure.message : String(failure);
}

import { Box, Spinner } from "@chakra-ui/react";
import { useParams } from "react-router-dom";

import { paths } from "./api";
import { Endpoint, EndpointBody } from "./Endpoint";
import { Overview } from "./Overview";
import { Notice, PageLink } from "./Parts";
import { endpointAddress } from "./routes";
import type { EndpointDetail } from "./types";
import { usePolled } from "./usePolled";

/** What the menu opens: all endpoints, or the one that the address names. */
const Rollouts = () => {
  // The id of a connection may have slashes, an endpoint's name has none.
  const address = useParams()["*"] ?? "";
  const workspace = address.slice(0, Math.max(0, address.lastIndexOf("/")));
  const name = address.slice(workspace.length + 1);
  return (
    <Box id={ROOT}>
      {workspace && name ? <Endpoint workspace={workspace} name={name} key={`${workspace}/${name}`} /> : <Overview />}
    </Box>
  );
};

/** The element that holds all of the page but its dialogs; what is around it is Airflow's. */
const ROOT = "controlled-rollout";

const isLoading = (detail: EndpointDetail) => detail.loading;

/** The tab of a DAG run: the endpoint whose rollout the run has. */
const RunRollout = ({ dagId, runId }: { dagId?: string; runId?: string }) => {
  const { data, error } = usePolled<EndpointDetail>(dagId && runId ? paths.runRollout(dagId, runId) : undefined, {
    isLoading,
  });
  if (error && !data) return <Notice status={error.status === 404 ? "info" : "error"}>{error.message}</Notice>;
  if (!data) return <Spinner aria-label="Loading" />;
  const { workspace, name } = data.overview;
  return (
    <Box id={ROOT} pt={2}>
      <PageLink to={endpointAddress(workspace, name)}>The page of endpoint {name}</PageLink>
      {error && <Notice status="error">{error.message}</Notice>}
      <EndpointBody detail={data} />
    </Box>
  );
};

/** In place of the page where Airflow's UI does not lend its libraries to plugins. */
const TooOld = () =>
  "The page of Controlled Rollout needs Airflow 3.3 or newer: this Airflow's UI has no Chakra UI for plugins.";

const pages = globalThis as Record<string, unknown>;
const isNewEnough = pages.ChakraUI !== undefined && pages.ReactJSXRuntime !== undefined;
// By the names that `react_apps` has in plugin.py.
pages.Rollouts = isNewEnough ? Rollouts : TooOld;
pages.Rollout = isNewEnough ? RunRollout : TooOld;

// Bundles the page: `node build.mjs FOLDER` writes FOLDER/main.js. What Airflow's UI has already loaded is taken from there.
import { build } from "esbuild";

const GLOBALS = {
  react: "React",
  "react/jsx-runtime": "ReactJSXRuntime",
  "react-router-dom": "ReactRouterDOM",
  "@chakra-ui/react": "ChakraUI",
};

const fromAirflow = {
  name: "from Airflow",
  setup({ onResolve, onLoad }) {
    onResolve({ filter: /^(react|react\/jsx-runtime|react-router-dom|@chakra-ui\/react)$/ }, ({ path }) => ({
      path,
      namespace: "airflow",
    }));
    // An Airflow that lacks one of them gets a sentence from main.tsx, so nothing may fail here.
    onLoad({ filter: /.*/, namespace: "airflow" }, ({ path }) => ({
      contents: `module.exports = globalThis.${GLOBALS[path]} ?? {}`,
    }));
  },
};

await build({
  entryPoints: ["src/main.tsx"],
  outfile: `${process.argv[2]}/main.js`,
  bundle: true,
  format: "esm",
  target: "es2022",
  jsx: "automatic",
  minify: true,
  legalComments: "eof",
  loader: { ".css": "text" },
  plugins: [fromAirflow],
  logLevel: "warning",
});

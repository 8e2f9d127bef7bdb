// Writes the TypeScript types of the API's answers: a JSON Schema on stdin, TypeScript on stdout.
import { text as allOf } from "node:stream/consumers";

import { compile } from "json-schema-to-typescript";

const schema = JSON.parse(await allOf(process.stdin));
const text = await compile(schema, "Answers", {
  additionalProperties: false,
  bannerComment: "// Made from operators/controlled_rollout/view/models.py by `scripts/page types`: do not edit.",
  ignoreMinAndMaxItems: true,
  style: { printWidth: 120 },
});
process.stdout.write(text);

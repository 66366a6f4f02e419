/**
 * A typed client of lamina's HTTP interface: `openapi-fetch` over the types of its OpenAPI document.
 */
import createFetchClient, { type Client, type ClientOptions } from "openapi-fetch";

import type { components, paths } from "./schema.js";

export type { components, operations, paths } from "./schema.js";

type Schemas = components["schemas"];
/** An error, as RFC 9457 has it. */
export type Problem = Schemas["Problem"];
/** Series of points, with the proof of what they fold. */
export type QueryAnswer = Schemas["QueryAnswer"];
export type Job = Schemas["Job"];

/** Answers are read as JSON; other formats are asked for with `parseAs` and an `accept` header. */
type Json = "application/json" | "application/problem+json";
export type Lamina = Client<paths, Json>;

export interface Options extends Omit<ClientOptions, "baseUrl"> {
  /** Where lamina listens, such as `http://127.0.0.1:8080`. */
  baseUrl: string;
  /** An API key or a token of the identity provider; none where nobody is asked for one. */
  key?: string;
}

export function createClient({ key, ...options }: Options): Lamina {
  const client = createFetchClient<paths, Json>(options);
  if (key !== undefined) {
    client.use({
      onRequest({ request }) {
        request.headers.set("authorization", `Bearer ${key}`);
        return request;
      },
    });
  }
  return client;
}

/** Whether what a request failed with is a problem of lamina, and not, say, a page of a proxy. */
export function isProblem(error: unknown): error is Problem {
  return typeof error === "object" && error !== null && "code" in error && "request_id" in error;
}

/** Events as the body of a request, to be spread into its options. */
export function ndjson(events: Iterable<unknown>) {
  return {
    body: Array.from(events, (event) => JSON.stringify(event)).join("\n"),
    bodySerializer: (body: unknown) => String(body),
    headers: { "content-type": "application/x-ndjson" },
  };
}

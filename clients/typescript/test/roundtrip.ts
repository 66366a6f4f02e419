/** Sends events to a running lamina, asks for what they add up to, and for what there is not; LAMINA_URL and LAMINA_KEY say where. */
import assert from "node:assert/strict";
import { env } from "node:process";

import { createClient, isProblem, ndjson, type Job, type QueryAnswer } from "../src/index.js";

const baseUrl = env["LAMINA_URL"];
const key = env["LAMINA_KEY"];
assert(baseUrl && key, "LAMINA_URL and LAMINA_KEY must be set");
const lamina = createClient({ baseUrl, key });

const events = Array.from({ length: 90 }, (_, n) => ({
  time: `2021-03-04T05:0${n % 3}:00Z`,
  id: `typescript-${n}`,
  site: ["x", "y"][n % 2],
  size: n,
}));
const sent = await lamina.POST("/v1/sources/{source}/events", { params: { path: { source: "hits" } }, ...ndjson(events) });
assert(sent.data, JSON.stringify(sent.error));
assert.deepEqual([sent.data.accepted, sent.data.rejected], [events.length, []]);

const asked = await lamina.GET("/v1/metrics/{metric}/query", {
  params: {
    path: { metric: "bytes" },
    query: {
      from: "2021-03-04T05:00:00Z",
      to: "2021-03-04T06:00:00Z",
      step: "1m",
      aggregate: "count,sum",
      group_by: "site",
      layer: "merged",
      at_least: sent.data.position,
      wait: "30s",
    },
  },
});
assert(asked.data, JSON.stringify(asked.error));
const answer: QueryAnswer = asked.data;
assert.equal(answer.meta.complete, true);
for (const [at, site] of ["x", "y"].entries()) {
  const series = answer.series.find(({ dimensions }) => dimensions["site"] === site);
  const own = events.filter((_, n) => n % 2 === at);
  assert.equal(series?.points.length, 3);
  const total = (name: string) => series.points.reduce((sum, point) => sum + Number(point[name]), 0);
  assert.deepEqual([total("count"), total("sum")], [own.length, own.reduce((sum, { size }) => sum + size, 0)]);
}

const queued = await lamina.POST("/v1/recomputes", { body: { metrics: ["bytes"], dry_run: true, reason: "a test" } });
assert(queued.data, JSON.stringify(queued.error));
const job: Job = queued.data;
const found = await lamina.GET("/v1/jobs/{id}", { params: { path: { id: job.id } } });
assert.equal(found.data?.kind, "recompute");

const unknown = await lamina.GET("/v1/metrics/{metric}", { params: { path: { metric: "nope" } } });
assert(isProblem(unknown.error));
assert.deepEqual([unknown.error.status, unknown.error.code], [404, "unknown_metric"]);

const stranger = await createClient({ baseUrl }).GET("/v1/metrics");
assert(isProblem(stranger.error) && stranger.error.code === "unauthorized", JSON.stringify(stranger.error));

// What the interface does not take does not compile.
async function neverCalled() {
  // @ts-expect-error there is no such path
  await lamina.GET("/v1/metricks");
  // @ts-expect-error `from` is required
  await lamina.GET("/v1/metrics/{metric}/query", { params: { path: { metric: "bytes" }, query: {} } });
  // @ts-expect-error there is no such layer
  await lamina.GET("/v1/metrics/{metric}/query", { params: { path: { metric: "bytes" }, query: { from: "0", layer: "both" } } });
  // @ts-expect-error jobs have no colour
  job.colour;
}
void neverCalled;

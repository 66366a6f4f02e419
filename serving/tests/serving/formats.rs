//! The formats of answers, their compression, and what caches are told.

use std::io::Read;

use arrow_check::columns;
use hyper::Method;
use lamina_serving::Config;
use serde_json::{Value, json};

use crate::world::{MINUTE, Reply, World, encoded};

const RANGE: [(&str, &str); 2] = [("from", "2015-09-12T00:00:00Z"), ("to", "2015-09-13T00:00:00Z")];
const ARROW: &str = "application/vnd.apache.arrow.stream";

fn edit(time: &str, channel: Option<&str>, added: i64) -> Value {
    json!({"time": format!("2015-09-12T{time}Z"), "channel": channel, "country": "DE", "user": "a,\"b\"", "added": added,
        "price": "10.10"})
}

/// Sealed and covered by batch; every read goes to the store.
async fn covered() -> World {
    let mut world = World::with(Config { cache_bytes: 0, ..Config::default() }).await;
    for (time, channel, added) in [
        ("00:10:05", Some("=1+1"), 10),
        ("01:20:00", Some("a,\"b\""), -20),
        ("01:21:00", None, 5),
        ("02:00:00", Some(""), 7),
    ] {
        world.append(0, &edit(time, channel, added));
    }
    world.seal(0).await;
    world.batch(true).await;
    world
}

async fn asked(world: &World, metric: &str, params: &[(&str, &str)], headers: &[(&str, &str)]) -> Reply {
    let pairs: Vec<String> =
        RANGE.iter().chain(params).map(|(name, value)| format!("{name}={}", encoded(value))).collect();
    world.send(Method::GET, &format!("/v1/metrics/{metric}/query?{}", pairs.join("&")), headers, "").await
}

#[tokio::test]
async fn ndjson_has_a_line_for_each_point_and_a_last_one_with_the_rest() {
    let world = covered().await;
    let params = [("group_by", "channel"), ("aggregate", "count,sum"), ("step", "1h")];
    let whole = asked(&world, "added", &params, &[]).await.ok();
    let reply = asked(&world, "added", &params, &[("accept", "application/x-ndjson")]).await;
    assert_eq!(reply.headers["content-type"], "application/x-ndjson");
    let lines: Vec<Value> = reply.text().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let (end, points) = lines.split_last().unwrap();
    let mut expected = Vec::new();
    for series in whole["series"].as_array().unwrap() {
        for point in series["points"].as_array().unwrap() {
            let mut line = json!({"dimensions": series["dimensions"]});
            point.as_object().unwrap().iter().for_each(|(name, value)| line[name] = value.clone());
            expected.push(line);
        }
    }
    assert_eq!((points, points.len()), (&expected[..], 4));
    assert_eq!((&end["$end"]["rows"], &end["$end"]["meta"]), (&json!(4), &whole["meta"]));
    assert_eq!((&end["$end"]["metric"], &end["$end"]["from"]), (&whole["metric"], &whole["from"]));
}

#[tokio::test]
async fn csv_is_quoted_and_holds_no_formula() {
    let world = covered().await;
    let params = [("group_by", "channel"), ("aggregate", "sum,top(user, 3)"), ("step", "1d")];
    let reply = asked(&world, "added", &params, &[("accept", "text/csv")]).await;
    assert!(reply.headers["content-type"].to_str().unwrap().starts_with("text/csv"));
    let top = r#""[{""value"":""a,\""b\"""",""count"":1,""error"":0}]""#;
    let start = "2015-09-12T00:00:00Z";
    let expected = format!(
        "channel,start,sum,\"top(user, 3)\"\r\n\"\",{start},7,{top}\r\n\"'=1+1\",{start},10,{top}\r\n\
         \"a,\"\"b\"\"\",{start},-20,{top}\r\n,{start},5,{top}\r\n"
    );
    assert_eq!(reply.text(), expected);
    assert_eq!(reply.headers["x-lamina-complete"], "true");
    let meta: Value = serde_json::from_str(reply.headers["x-lamina-meta"].to_str().unwrap()).unwrap();
    assert_eq!(meta, asked(&world, "added", &params, &[]).await.ok()["meta"]);
    let prices = asked(&world, "price", &[("aggregate", "sum")], &[("accept", "text/csv")]).await;
    assert_eq!(prices.text(), format!("start,sum\r\n{start},40.40\r\n"));
}

#[tokio::test]
async fn arrow_streams_hold_the_types_of_the_query_and_the_proof() {
    let world = covered().await;
    let asks = "count,sum,min,avg,distinct(user),p50,top(user, 3)";
    let params = [("group_by", "channel"), ("aggregate", asks), ("step", "1h")];
    let reply = asked(&world, "added", &params, &[("accept", ARROW)]).await;
    assert_eq!(reply.headers["content-type"], ARROW);
    let (schema, rows) = columns(&reply.bytes);
    let types: Vec<String> =
        schema.fields().iter().map(|field| format!("{} {}", field.name(), field.data_type())).collect();
    assert_eq!(
        types[..5],
        ["channel Utf8", "start Timestamp(µs, \"UTC\")", "count Int64", "sum Decimal128(38, 0)", "min Int64"]
    );
    assert_eq!(types[5..8], ["avg Float64", "distinct(user) Int64", "p50 Float64"]);
    let whole = asked(&world, "added", &params, &[]).await.ok();
    let rest: Value = serde_json::from_str(&schema.metadata()["lamina"]).unwrap();
    assert_eq!((&rest["meta"], &rest["metric"]), (&whole["meta"], &whole["metric"]));
    let mut expected = Vec::new();
    for series in whole["series"].as_array().unwrap() {
        for point in series["points"].as_array().unwrap() {
            expected.push((series["dimensions"]["channel"].clone(), point["sum"].clone(), point["avg"].clone()));
        }
    }
    assert_eq!(rows, expected);
    let empty = asked(&world, "n", &[("aggregate", "sum")], &[("accept", ARROW)]).await;
    let (schema, rows) = columns(&empty.bytes);
    assert_eq!((schema.fields().len(), rows.len()), (2, 0), "what is empty has its types, too");
    let linear =
        asked(&world, "added", &[("step", "1h"), ("fill", "linear"), ("aggregate", "count")], &[("accept", ARROW)])
            .await;
    assert_eq!(columns(&linear.bytes).0.field(1).data_type().to_string(), "Float64");
}

/// Reads what another Arrow program would.
mod arrow_check {
    use std::sync::Arc;

    use arrow::{
        array::{Array, AsArray},
        datatypes::{Decimal128Type, Float64Type, SchemaRef},
        ipc::reader::StreamReader,
    };
    use serde_json::{Value, json};

    /// The schema, and of each row the first column, `sum` and `avg`, as far as they are there.
    pub(super) fn columns(bytes: &[u8]) -> (SchemaRef, Vec<(Value, Value, Value)>) {
        let reader = StreamReader::try_new(bytes, None).unwrap();
        let schema = Arc::clone(&reader.schema());
        let mut rows = Vec::new();
        for batch in reader {
            let batch = batch.unwrap();
            let Some(avg) = batch.column_by_name("avg") else { continue };
            let sums = batch.column_by_name("sum").unwrap().as_primitive::<Decimal128Type>();
            let names = batch.column(0).as_string::<i32>();
            for row in 0..batch.num_rows() {
                let name = if names.is_null(row) { Value::Null } else { json!(names.value(row)) };
                let avg = avg.as_primitive::<Float64Type>().value(row);
                rows.push((name, json!(sums.value(row)), json!(avg)));
            }
        }
        (schema, rows)
    }
}

#[tokio::test]
async fn a_format_that_there_is_not_is_406_with_what_there_is() {
    let world = covered().await;
    let reply = asked(&world, "added", &[], &[("accept", "text/html")]).await;
    let (code, detail) = reply.problem(406);
    assert!(code == "not_acceptable" && detail.contains(ARROW), "{detail}");
    assert_eq!(reply.json()["available"], json!(["application/json", "application/x-ndjson", "text/csv", ARROW]));
}

#[tokio::test]
async fn answers_are_compressed_as_the_client_takes_them() {
    let world = covered().await;
    let params = [("group_by", "channel"), ("step", "1m"), ("fill", "zero"), ("aggregate", "count,sum")];
    let plain = asked(&world, "added", &params, &[]).await;
    for coding in ["gzip", "br", "zstd"] {
        for accept in ["application/json", "text/csv", ARROW] {
            let whole = asked(&world, "added", &params, &[("accept", accept)]).await;
            let packed = asked(&world, "added", &params, &[("accept", accept), ("accept-encoding", coding)]).await;
            assert_eq!(packed.headers["content-encoding"], coding, "{accept}");
            assert!(packed.bytes.len() * 3 < whole.bytes.len(), "{coding} of {accept}");
            assert_eq!(packed.headers["vary"], "accept, accept-encoding");
            let unpacked = match coding {
                "gzip" => {
                    let mut bytes = Vec::new();
                    flate2::read::GzDecoder::new(&*packed.bytes).read_to_end(&mut bytes).unwrap();
                    bytes
                }
                "zstd" => zstd::decode_all(&*packed.bytes).unwrap(),
                _ => whole.bytes.to_vec(),
            };
            assert!(unpacked == whole.bytes, "{coding} of {accept}");
        }
    }
    assert!(!plain.headers.contains_key("content-encoding"));
}

fn tag(reply: &Reply) -> String {
    assert_eq!(reply.headers["cache-control"], "private, no-cache", "late events may fall into any range");
    assert_eq!(reply.headers["vary"], "accept, accept-encoding");
    reply.headers["etag"].to_str().unwrap().to_owned()
}

#[tokio::test]
async fn an_answer_that_batch_covers_stands_whatever_is_folded_elsewhere_until_an_event_is_late() {
    let mut world = covered().await;
    let params = [("aggregate", "count"), ("group_by", "channel")];
    let first = asked(&world, "added", &params, &[]).await;
    let own = tag(&first);
    let again = async |world: &World| asked(world, "added", &params, &[("if-none-match", &own)]).await;
    let still = again(&world).await;
    assert_eq!((still.status.as_u16(), still.bytes.len(), tag(&still)), (304, 0, own.clone()));
    // Another day, in the open epoch: nothing that this answer is made of.
    world.append(1, &json!({"time": "2015-09-14T00:00:00Z", "channel": "a", "country": "DE", "added": 1}));
    world.flush(1).await;
    let scans = world.store.scans();
    assert_eq!(again(&world).await.status, 304);
    assert_eq!(world.store.scans(), scans, "batch was not read");
    assert_eq!(asked(&world, "added", &params, &[("if-none-match", &format!("\"x\", {own}"))]).await.status, 304);
    assert_eq!(asked(&world, "added", &params, &[("if-none-match", "W/\"x\"")]).await.status, 200);
    assert_eq!(asked(&world, "added", &params, &[("if-none-match", &own), ("accept", "text/csv")]).await.status, 200);
    // Late, into the range.
    world.append(1, &edit("05:00:00", Some("a"), 1));
    world.flush(1).await;
    let late = again(&world).await;
    assert_eq!(late.status, 200);
    assert_ne!((tag(&late), late.ok()["series"].clone()), (own.clone(), first.ok()["series"].clone()));
    // What is open stands until something is folded, wherever.
    let open = tag(&late);
    let again = async |world: &World| asked(world, "added", &params, &[("if-none-match", &open)]).await.status.as_u16();
    assert_eq!(again(&world).await, 304);
    world.append(1, &json!({"time": "2015-09-14T00:00:00Z", "channel": "a", "country": "DE", "added": 1}));
    world.flush(1).await;
    assert_eq!(again(&world).await, 200);
    // Batch publishes: the same values, from elsewhere.
    world.seal(1).await;
    world.batch(true).await;
    assert_eq!(again(&world).await, 200);
}

#[tokio::test]
async fn a_tag_changes_with_what_batch_publishes_the_horizon_and_the_query() {
    let world = covered().await;
    let own = tag(&asked(&world, "added", &[("aggregate", "count")], &[]).await);
    for other in [[("aggregate", "sum")], [("aggregate", "count,sum")]] {
        assert_ne!(tag(&asked(&world, "added", &other, &[]).await), own);
    }
    assert_ne!(tag(&asked(&world, "added", &[("aggregate", "count"), ("numbers", "string")], &[]).await), own);
    let batch = asked(&world, "added", &[("aggregate", "count"), ("layer", "batch")], &[]).await;
    assert!(!batch.headers.contains_key("etag"), "runs under way are answered before they are published");
    let again = async |world: &World| {
        asked(world, "added", &[("aggregate", "count")], &[("if-none-match", &own)]).await.status.as_u16()
    };
    assert_eq!(again(&world).await, 304);
    // A recompute of the same values.
    let mut world = world;
    world.batch(true).await;
    assert_eq!(again(&world).await, 200);
    let own = tag(&asked(&world, "added", &[("step", "1m")], &[]).await);
    let horizon = 16_690 * 86_400_000_000 + 60 * MINUTE;
    world.edit_views("added", |state| state.raise_horizon(MINUTE, horizon)).await;
    assert_eq!(asked(&world, "added", &[("step", "1m")], &[("if-none-match", &own)]).await.status, 200);
}

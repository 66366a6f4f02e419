"""One peer answers, from lamina's archive as it stands, the GROUP BY that a recompute of the metric is.

Prints what it took, and count and sum of all that it wrote, as JSON.
"""

import json
import sys
import time

# Every record is in the archive; only accepted ones count.
QUERY = """
    SELECT host, region, metric, date_trunc('minute', _time) AS bucket,
           count(*) AS count, sum(value) AS sum, min(value) AS min, max(value) AS max
    FROM events WHERE _outcome = 0 GROUP BY 1, 2, 3, 4
"""
TOTAL = "SELECT sum(count), sum(sum) FROM rolled_up"


def main():
    engine, archive, out, threads, memory_mib = sys.argv[1:]
    run = {"duckdb": duckdb, "datafusion": datafusion}[engine]
    began = time.monotonic()
    total = run(archive, out, int(threads), int(memory_mib))
    seconds = time.monotonic() - began
    print(json.dumps({"seconds": round(seconds, 3), "total": [int(each) for each in total()]}))


def duckdb(archive, out, threads, memory_mib):
    import duckdb as engine

    connection = engine.connect(config={"threads": threads, "memory_limit": f"{memory_mib}MiB"})
    connection.execute("SET preserve_insertion_order = false")
    connection.execute(f"CREATE VIEW events AS SELECT * FROM read_parquet('{archive}/**/*.parquet')")
    connection.execute(f"COPY ({QUERY}) TO '{out}' (FORMAT parquet)")
    connection.execute(f"CREATE VIEW rolled_up AS SELECT * FROM read_parquet('{out}')")
    return lambda: connection.execute(TOTAL).fetchone()


def datafusion(archive, out, threads, memory_mib):
    import datafusion as engine

    runtime = engine.RuntimeEnvBuilder().with_disk_manager_os().with_fair_spill_pool(memory_mib << 20)
    settings = engine.SessionConfig().with_target_partitions(threads)
    settings = settings.set("datafusion.execution.listing_table_ignore_subdirectory", "false")
    context = engine.SessionContext(settings, runtime)
    context.register_parquet("events", archive + "/")
    context.sql(QUERY).write_parquet(out)

    def total():
        context.register_parquet("rolled_up", out)
        (row,) = context.sql(TOTAL).to_pylist()
        return row.values()

    return total


if __name__ == "__main__":
    main()

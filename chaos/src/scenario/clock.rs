//! Wall clocks that jump by hours, of one process at a time (faketime).

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use rand::RngExt;

use super::Run;
use crate::{
    failure::{Doing, Failure, Outcome},
    process::Process,
    world::{Totals, World},
};

const SECOND: Duration = Duration::from_secs(1);
const JUMPS: u32 = 40;
const HOURS: f64 = 5.0;

pub(super) fn jump(run: &mut Run<'_>) -> Outcome<Totals> {
    let plan = run.plan();
    let folder = plan.folder.clone();
    fs::create_dir_all(&folder).doing("make a folder for clocks")?;
    let libraries = format!("{}:{}", library()?.display(), waits(&folder)?.display());
    let adapt = |process: &mut Process| {
        let file = clock_file(&folder, &process.name);
        // Read again at most once a second; time-outs go by the monotonic clock, which does not jump.
        for (name, value) in [
            ("LD_PRELOAD", libraries.clone()),
            ("FAKETIME_TIMESTAMP_FILE", file.display().to_string()),
            ("FAKETIME_CACHE_DURATION", "1".to_owned()),
            ("FAKETIME_DONT_FAKE_MONOTONIC", "1".to_owned()),
            ("DONT_FAKE_MONOTONIC", "1".to_owned()),
        ] {
            process.set(name, value);
        }
    };
    for name in ["speed-1", "speed-2", "speed-3", "batch-1", "batch-2", "serving-1", "serving-2"] {
        set(&clock_file(&folder, name), 0)?;
    }
    let world = World::start_with(plan, 0..0, adapt)?;
    run.in_world(world, |run, world| {
        world.run_for(10 * SECOND)?;
        for number in 0..JUMPS {
            let names: Vec<String> = world
                .speed
                .iter()
                .chain(&world.batch)
                .chain(&world.serving)
                .map(|process| process.name.clone())
                .collect();
            let name = &names[world.random.random_range(0..names.len())];
            let by = (world.random.random_range(-HOURS..HOURS) * 3_600.0) as i64;
            set(&clock_file(&folder, name), by)?;
            // Now and then a worker dies with a clock that is wrong.
            if number % 4 == 3 {
                let victim = world.random.random_range(0..world.speed.len());
                world.speed[victim].kill();
                world.speed[victim].start()?;
            }
            world.run_for(7 * SECOND)?;
        }
        for name in ["speed-1", "speed-2", "speed-3", "batch-1", "batch-2", "serving-1", "serving-2"] {
            set(&clock_file(&folder, name), 0)?;
        }
        world.run_for(10 * SECOND)?;
        run.faults.push(format!(
            "{JUMPS} x the wall clock of one process jumps by up to {HOURS} h; {} x kill -9 of a worker",
            JUMPS / 4
        ));
        Ok(())
    })
}

fn clock_file(folder: &Path, name: &str) -> PathBuf {
    folder.join(format!("{name}.clock"))
}

/// Sets the clock that many seconds off; the file is replaced as a whole.
fn set(file: &Path, seconds: i64) -> Outcome {
    let part = file.with_extension("part");
    fs::write(&part, format!("{seconds:+}\n")).and_then(|()| fs::rename(&part, file)).doing("set a clock")
}

/// Compiles what faketime lacks.
fn waits(folder: &Path) -> Outcome<PathBuf> {
    let (source, library) = (folder.join("clock.c"), folder.join("clock.so"));
    let doing = "compile waits that follow the clock";
    fs::write(&source, include_str!("clock.c")).doing(doing)?;
    let compiled = Command::new("cc").args(["-shared", "-fPIC", "-O2", "-o"]).args([&library, &source]).output();
    match compiled.doing(doing)? {
        done if done.status.success() => Ok(library),
        done => {
            Err(Failure::Cannot { doing: doing.to_owned(), why: String::from_utf8_lossy(&done.stderr).into_owned() })
        }
    }
}

/// The library that faketime preloads.
fn library() -> Outcome<PathBuf> {
    let doing = "find faketime";
    let found = Command::new("faketime").args(["-f", "+0", "printenv", "LD_PRELOAD"]).output();
    let found = found.map_err(|_| Failure::Cannot {
        doing: doing.to_owned(),
        why: "it is not installed: apt-get install faketime".to_owned(),
    })?;
    let text = String::from_utf8_lossy(&found.stdout);
    let path = text.split([':', ' ']).map(str::trim).find(|path| path.contains("libfaketime")).unwrap_or_default();
    // Many threads need the other library.
    Ok(PathBuf::from(path.replace("libfaketime.so", "libfaketimeMT.so")))
}

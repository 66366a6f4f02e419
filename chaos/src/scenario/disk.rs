//! Disks without space under the archive and under batch's spill files: size-limited tmpfs.

use std::{
    fs::{self, File},
    io::Write,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use super::Run;
use crate::{
    failure::{Doing, Failure, Outcome},
    process::Process,
    world::{Plan, Totals, World},
};

const SECOND: Duration = Duration::from_secs(1);
/// How soon everything is served after there is space again.
const BACK_WITHIN: Duration = Duration::from_secs(60);

/// A mounted file system of its own; unmounted when dropped.
pub(super) struct Tmpfs {
    pub(super) folder: PathBuf,
}

impl Tmpfs {
    /// # Errors
    /// If this user may not mount.
    pub(super) fn mount(folder: &Path, mib: u32) -> Outcome<Self> {
        let doing = format!("mount a tmpfs of {mib} MiB on {} (root may)", folder.display());
        fs::create_dir_all(folder).doing(&*doing)?;
        let size = format!("size={mib}m");
        let done = Command::new("mount").args(["-t", "tmpfs", "-o", &size, "lamina-chaos"]).arg(folder).output();
        let done = done.doing(&*doing)?;
        match done.status.success() {
            true => Ok(Self { folder: folder.to_owned() }),
            false => Err(Failure::Cannot { doing, why: String::from_utf8_lossy(&done.stderr).into_owned() }),
        }
    }

    fn filler(&self) -> PathBuf {
        self.folder.join("filler")
    }

    /// Takes all the space there is.
    pub(super) fn fill(&self) -> Outcome {
        let mut file = File::create(self.filler()).doing("fill a disk")?;
        let block = vec![0_u8; 1 << 16];
        while file.write_all(&block).is_ok() {}
        // the last few bytes too
        while file.write_all(&block[..512]).is_ok() {}
        Ok(())
    }

    pub(super) fn free(&self) -> Outcome {
        fs::remove_file(self.filler()).doing("free a disk")
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(&self.folder).status();
    }
}

pub(super) fn archive(run: &mut Run<'_>) -> Outcome<Totals> {
    let plan = run.plan();
    let disk = Tmpfs::mount(&plan.folder.join("disk"), 512)?;
    let plan = Plan { archive: Some(disk.folder.join("archive")), ..plan };
    // Consumption is to stop at the limit of an epoch, not only its seal.
    let small = |process: &mut Process| process.set("LAMINA__SPEED__EPOCH_MAX_RECORDS", "5000");
    let world = World::start_with(plan, 0..0, small)?;
    run.in_world(world, |run, world| {
        rounds(run, world, &disk, "the archive")?;
        run.faults.push("3 x the archive's disk is full for 30 s".to_owned());
        Ok(())
    })
}

pub(super) fn spill(run: &mut Run<'_>) -> Outcome<Totals> {
    let plan = run.plan();
    let disk = Tmpfs::mount(&plan.folder.join("disk"), 64)?;
    let folder = disk.folder.clone();
    let adapt = |process: &mut Process| process.set("TMPDIR", folder.display().to_string());
    // So little memory that a run must spill.
    let plan = Plan { more: "memory_mib = 8\nlease = \"2s\"\n".to_owned(), schedule: "*/10 * * * * *", ..plan };
    let world = World::start_with(plan, 0..0, adapt)?;
    run.in_world(world, |run, world| {
        let before = world.generation()?;
        rounds(run, world, &disk, "batch's spill files")?;
        world.run_for(30 * SECOND)?;
        let after = world.generation()?;
        if after <= before {
            return Err(Failure::Broken(format!("batch published nothing after generation {before}")));
        }
        run.faults.push("3 x the disk of batch's spill files is full for 30 s".to_owned());
        run.notes.push(format!("generations {before} to {after} were published"));
        Ok(())
    })
}

fn rounds(run: &mut Run<'_>, world: &mut World, disk: &Tmpfs, what: &str) -> Outcome {
    world.run_for(25 * SECOND)?;
    for _ in 0..3 {
        disk.fill()?;
        let ran = world.run_for(30 * SECOND);
        disk.free()?;
        ran?;
        let took = world.caught_up(BACK_WITHIN)?;
        run.notes.push(format!("{what}: caught up {:.1} s after space returned", took.as_secs_f64()));
        world.run_for(15 * SECOND)?;
    }
    Ok(())
}

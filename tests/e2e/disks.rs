//! Disks that are lost, torn, damaged or full.
//!
//! Owns: one test for each such row of [`crate::table::TABLE`]. A store is touched only while its node
//! does not run; `understudy store fsck` says what became of it.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use understudy_protocol::id::ChildId;
use understudy_tests::callers::counter;
use understudy_tests::cluster::{Options, items};
use understudy_tests::disk;

use crate::exe;
use crate::story::{COUNTERS, Story};
use crate::table::{bound, say};

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_lost_with_its_disk_takes_nothing_with_it() -> Result<()> {
    let fault = "the owner's machine lost with its disk";
    let mut story = Story::begin(Options::default()).await?;
    let victim = story.cluster.owner_of_most().await?;
    let store = story.field_of(victim, "store").await?;
    let took = story
        .strike(victim, bound(fault), async |cluster, victim| {
            cluster.lose(victim)?;
            std::fs::remove_dir_all(cluster.data_dir(victim)).context("the disk")
        })
        .await?;
    story.whole().await?;
    let next = story.field_of(victim, "store").await?;
    assert_ne!(store, next, "a lost store's id is never used again");
    say(
        fault,
        format!("answered after {took:?}; {store} was replaced by {next}"),
    );
    story.end().await.map(drop)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_file_that_is_cut_short_is_replaced_by_a_new_store() -> Result<()> {
    let fault = "a store file cut short";
    let mut story = Story::begin(Options::default()).await?;
    let store = story.field_of(1, "store").await?;
    story.cluster.kill(1)?;
    // So little is left that promises are gone with the rest.
    cut(&story.cluster.data_dir(1), 64)?;
    story.cluster.spawn(1)?;
    let began = Instant::now();
    story.whole().await?;
    let next = story.field_of(1, "store").await?;
    assert_ne!(
        store, next,
        "a store that forgot a promise must not answer under its id"
    );
    let kept = aside(&story.cluster.data_dir(1))?;
    assert_eq!(kept.len(), 1, "{kept:?}");
    say(
        fault,
        format!("{store} became {next}; whole after {:?}", began.elapsed()),
    );
    story.end().await.map(drop)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_record_is_mended_from_the_other_copies() -> Result<()> {
    let fault = "one damaged record";
    let how = mended(fault, async |data| damage_a_record(data)).await?;
    assert!(
        how.contains("was mended"),
        "the store itself is sound: {how}"
    );
    say(fault, how);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_byte_that_flipped_in_a_store_is_noticed_and_made_good() -> Result<()> {
    let fault = "one byte flipped in a store";
    let how = mended(fault, async |data| flip_a_byte(data));
    say(fault, how.await?);
    Ok(())
}

/// Stops a node, has something done to its store, and starts it until fsck finds nothing any more: how
/// it came to that.
async fn mended(fault: &str, harm: impl AsyncFnOnce(&Path) -> Result<String>) -> Result<String> {
    let mut story = Story::begin(Options::default()).await?;
    story.clean_run(Duration::from_secs(3)).await?;
    let store = story.field_of(1, "store").await?;
    let data = story.cluster.data_dir(1);
    story.cluster.kill(1)?;
    let before = fsck(&data)?;
    assert!(before.is_sound(), "{before:?}");
    let found = harm(&data).await?;
    let harmed = fsck(&data)?;
    assert!(
        !harmed.is_sound(),
        "{found}, and fsck sees nothing: {harmed:?}"
    );
    let began = Instant::now();
    let mut starts = 0;
    // That a copy has been mended is nothing that a directory shows, so the store itself is asked.
    loop {
        starts += 1;
        story.cluster.spawn(1)?;
        story.whole().await?;
        story.clean_run(Duration::from_secs(2)).await?;
        story.cluster.terminate(1, bound(fault)).await?;
        let after = fsck(&data)?;
        if after.is_sound() {
            break;
        }
        if began.elapsed() > bound(fault) {
            bail!(
                "{found}; after {starts} starts it is not mended: {after:?}\n{}",
                story.logs()
            );
        }
    }
    let took = began.elapsed();
    story.cluster.spawn(1)?;
    story.whole().await?;
    let next = story.field_of(1, "store").await?;
    let how = match aside(&data)?.len() {
        0 => format!("{store} was mended"),
        _ => format!("{store} was put aside, {next} was filled"),
    };
    story.end().await?;
    Ok(format!(
        "{found}; {how}; sound after {took:?} and {starts} starts"
    ))
}

#[test]
fn a_disk_that_is_nearly_full_takes_no_records_and_stops_nobody() -> Result<()> {
    let fault = "a disk nearly full";
    on_a_small_disk(fault, async |mut story: Story| {
        let store = story.field_of(SMALL, "store").await?;
        story.cluster.disk()?.fill(NEARLY_FULL)?;
        let all: Vec<usize> = (0..COUNTERS).collect();
        let took = story.all_answer(&all, bound(fault)).await?;
        let steps = story.clean_run(FULL).await?;
        let again = story.all_answer(&all, bound(fault)).await?;
        assert_eq!(
            story.sets_with(&store).await?,
            0,
            "what it refused, it must not be counted for"
        );
        let used = story.cluster.disk()?.used_percent()?;
        story.cluster.disk()?.empty()?;
        let began = Instant::now();
        story.whole().await?;
        assert_eq!(story.field_of(SMALL, "store").await?, store);
        let log = story.cluster.whole_log(SMALL);
        for said in ["new records are turned away", "there is room again"] {
            assert_eq!(log.matches(said).count(), 1, "{said:?} in {log}");
        }
        say(
            fault,
            format!(
                "at {used} % every counter answered after {took:?}, {steps} steps were taken, every \
                 one answered again after {again:?}; whole {:?} after there was room",
                began.elapsed()
            ),
        );
        story.end().await.map(drop)
    })
}

#[test]
fn a_disk_without_a_byte_of_room_loses_nothing() -> Result<()> {
    let fault = "a disk full to the last byte";
    on_a_small_disk(fault, async |mut story: Story| {
        let store = story.field_of(SMALL, "store").await?;
        let theirs = story.cluster.counters_of(SMALL, COUNTERS).await?;
        story.cluster.disk()?.fill(100)?;
        let others = story.others(SMALL);
        let took = story.all_answer_at(&others, &theirs, bound(fault)).await?;
        let mut ends = 0;
        let began = Instant::now();
        // A process that ends finds no room when it starts again either.
        story.cluster.kill(SMALL)?;
        for nth in 0.. {
            if began.elapsed() > FULL {
                break;
            }
            // Who ends makes room by it, perhaps; there shall be none.
            story.cluster.disk()?.fill(100)?;
            // The directory changes, and so its log grows, on every disk.
            story.create(&format!("@demo/counter/full-{nth}")).await?;
            if !story.cluster.runs(SMALL) {
                ends += 1;
                story.cluster.spawn(SMALL)?;
            }
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
        story.clean_run(Duration::from_secs(2)).await?;
        story.cluster.disk()?.empty()?;
        let began = Instant::now();
        story.whole().await?;
        assert_eq!(
            story.field_of(SMALL, "store").await?,
            store,
            "a full disk is no damaged store\n{}",
            story.cluster.log(SMALL)
        );
        say(
            fault,
            format!(
                "its counters answered after {took:?}; it ended {ends} times; whole {:?} after \
                 there was room",
                began.elapsed()
            ),
        );
        story.end().await.map(drop)
    })
}

/// Runs a story in which one node's data lies on a small disk; says so where none can be mounted.
fn on_a_small_disk(fault: &str, tell: impl AsyncFnOnce(Story) -> Result<()>) -> Result<()> {
    if let Err(error) = disk::own_mounts() {
        say(
            fault,
            format!("SKIPPED: nothing can be mounted here: {error:#}"),
        );
        return Ok(());
    }
    // Its threads are started by this one, and so they see its mounts.
    let runtime = tokio::runtime::Runtime::new()?;
    runtime.block_on(async {
        let options = Options {
            small_disk: Some((SMALL, DISK_MEBIBYTES)),
            ..Options::default()
        };
        let story = Story::begin(options).await?;
        // The unit goes on, and its own node's copy is the one that has no room.
        story.cluster.give(SMALL, GIVEN).await?;
        tell(story).await
    })
}

impl Story {
    /// Creates a dedicated child, asked of a node with room.
    async fn create(&self, child: &str) -> Result<()> {
        let server = self.cluster.url((SMALL + 1) % self.cluster.size());
        let body = serde_json::json!({ "child": child, "restart": "permanent" });
        self.cluster
            .client()
            .post(&server, "/v1/units", &body)
            .await?;
        Ok(())
    }

    /// How many replica sets of units with counters name the store.
    async fn sets_with(&self, store: &str) -> Result<usize> {
        let server = self.cluster.url((SMALL + 1) % self.cluster.size());
        let units = self.cluster.client().get(&server, "/v1/units").await?;
        let slots: Vec<u64> = (0..COUNTERS)
            .map(|nth| ChildId::parse(&counter(nth)).map(|child| child.slot().get().into()))
            .collect::<Result<_, _>>()?;
        let named = |unit: &&serde_json::Value| {
            let bound = |name: &str| unit["slots"][name].as_u64().unwrap_or_default();
            let range = bound("start")..bound("end");
            let mut replicas = unit["replicas"].as_array().into_iter().flatten();
            slots.iter().any(|slot| range.contains(slot))
                && replicas.any(|replica| replica["store"] == store)
        };
        Ok(items(&units).filter(named).count())
    }
}

/// What `understudy store fsck` says.
#[derive(Debug)]
struct Fsck {
    code: Option<i32>,
    text: String,
}

impl Fsck {
    fn is_sound(&self) -> bool {
        let says = |line: &str| self.text.lines().any(|said| said == line);
        self.code == Some(0)
            && says("damaged chains  0")
            // There are no dedicated children here that could confirm that they lost nothing.
            && (says("writes lost     no")
                || says("writes lost     perhaps of dedicated children; other copies will say"))
            && !self.text.contains("found:")
    }
}

fn fsck(data: &Path) -> Result<Fsck> {
    let output = Command::new(exe())
        .args(["store", "fsck"])
        .arg(data)
        .output()?;
    let text = [output.stdout, output.stderr].concat();
    Ok(Fsck {
        code: output.status.code(),
        text: String::from_utf8_lossy(&text).into_owned(),
    })
}

/// Leaves so many bytes of the records' file.
fn cut(data: &Path, bytes: u64) -> Result<()> {
    let path = data.join(RECORDS).join("db");
    Ok(std::fs::File::options()
        .write(true)
        .open(path)?
        .set_len(bytes)?)
}

/// Changes one byte of one record's body, as a disk that lies would: sled does not notice, for it is
/// sled that writes it. Whose record it was.
fn damage_a_record(data: &Path) -> Result<String> {
    let sled = sled::open(data.join(RECORDS))?;
    let records: Vec<_> = sled.scan_prefix(b"r").collect::<Result<_, _>>()?;
    let middle = records.len() / 2;
    let (key, value) = records.get(middle).context("no record")?;
    let mut damaged = value.to_vec();
    *damaged.last_mut().context("an empty record")? ^= 1;
    sled.insert(key, damaged)?;
    sled.flush()?;
    Ok(format!(
        "a record of {}",
        String::from_utf8_lossy(&key[1..key.len() - 9])
    ))
}

/// Flips one bit in the file, in the bytes of a record, so that fsck notices: old bytes lie there too.
fn flip_a_byte(data: &Path) -> Result<String> {
    let path = data.join(RECORDS).join("db");
    let whole = std::fs::read(&path)?;
    for nth in 0..COUNTERS {
        let child = counter(nth).into_bytes();
        let windows = whole.windows(child.len());
        let Some(place) = windows.rev().position(|window| window == child) else {
            continue;
        };
        let place = whole.len() - place + BODY;
        let mut damaged = whole.clone();
        *damaged.get_mut(place).context("the end")? ^= 1;
        std::fs::write(&path, &damaged)?;
        let after = fsck(data)?;
        if !after.is_sound() {
            let found = after.text.lines().find(|line| line.contains("found: "));
            return Ok(format!("at {place}: {}", found.unwrap_or("no more").trim()));
        }
        std::fs::write(&path, &whole)?;
    }
    bail!("no record was found in {}", path.display())
}

/// Stores that were put aside.
fn aside(data: &Path) -> Result<Vec<PathBuf>> {
    let entries = std::fs::read_dir(data)?.map(|entry| Ok(entry?.path()));
    let all: Vec<PathBuf> = entries.collect::<Result<_>>()?;
    let is_aside = |path: &PathBuf| path.to_string_lossy().contains("store.bad-");
    Ok(all.into_iter().filter(is_aside).collect())
}

/// sled's folder of the records.
const RECORDS: &str = "store/records/sled";

/// So far behind the end of the child's name lies the body, or at least something of the record.
const BODY: usize = 60;

/// Units that the node with the small disk owns.
const GIVEN: usize = 8;

/// The node with the small disk.
const SMALL: usize = 1;

/// Room for a store with all of its records several times over.
const DISK_MEBIBYTES: u64 = 48;

/// Above the watermark of 85 %, from which on records are refused.
const NEARLY_FULL: u64 = 92;

/// How long a disk stays full: several starts of its node.
const FULL: Duration = Duration::from_secs(12);

//! Every row is `(at millisecond, event, what the supervisor then wants)`. Actions are written
//! `+a` start, `-a` stop, `~a` forget, `!a(bc)` quarantine a and hold b and c, `^a` escalate because
//! of a, `v` down; a refusal is written as its name.
#![allow(clippy::unwrap_used)]

use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::time::Duration;

use super::super::policy::{Backoff, Intensity};
use super::super::strikes::{STRIKES_MAX, Strikes};
use super::*;
use Exit::{Abnormal, Normal, Shutdown};
use RestartType::{Permanent, Temporary, Transient};
use Strategy::{OneForAll, OneForOne, RestForOne};

type Row<'a> = (u64, Event<char>, &'a str);

const STRATEGIES: [Strategy; 3] = [OneForOne, OneForAll, RestForOne];

/// Feeds the rows to a supervisor whose `children`, all permanent, have been running since 0.
fn check(strategy: Strategy, children: &str, rows: &[Row<'_>]) -> Supervisor<char> {
    check_from(running(strategy, children), rows)
}

/// Besides the row itself, every row checks what is true of all: a refusal changes nothing, a second
/// tick changes nothing, and what is stored comes back the same.
fn check_from(mut supervisor: Supervisor<char>, rows: &[Row<'_>]) -> Supervisor<char> {
    for (at, event, expected) in rows {
        let before = supervisor.clone();
        let actions = match feed(&mut supervisor, *at, event.clone()) {
            Ok(actions) => actions,
            Err(refusal) => {
                assert_eq!(
                    supervisor, before,
                    "{event:?} was refused and yet changed something"
                );
                format!("{refusal:?}")
            }
        };
        assert_eq!(&actions, expected, "at {at}: {event:?}");
        let settled = supervisor.clone();
        assert_eq!(
            feed(&mut supervisor, *at, Event::Tick).as_deref(),
            Ok(""),
            "after {event:?}"
        );
        assert_eq!(supervisor, settled, "a second tick after {event:?}");
        assert_eq!(stored(&supervisor), supervisor, "stored after {event:?}");
    }
    supervisor
}

fn running(strategy: Strategy, children: &str) -> Supervisor<char> {
    let mut supervisor = Supervisor::new(Policy::new(strategy));
    for child in children.chars() {
        add_running(&mut supervisor, child, Permanent);
    }
    supervisor
}

fn add_running(supervisor: &mut Supervisor<char>, child: char, restart: RestartType) {
    assert_eq!(
        feed(supervisor, 0, add(child, restart)),
        Ok(format!("+{child}"))
    );
    assert_eq!(feed(supervisor, 0, up(child)).as_deref(), Ok(""));
}

fn feed(
    supervisor: &mut Supervisor<char>,
    at: u64,
    event: Event<char>,
) -> Result<String, SupervisorError> {
    supervisor.handle(Time::from_millis(at), event)?;
    let actions = core::iter::from_fn(|| supervisor.poll_action());
    let words: Vec<String> = actions.map(|action| written(&action)).collect();
    Ok(words.join(" "))
}

fn written(action: &Action<char>) -> String {
    match action {
        Action::Start { child } => format!("+{child}"),
        Action::Stop { child } => format!("-{child}"),
        Action::Forget { child } => format!("~{child}"),
        Action::Quarantine { child, held } => {
            format!("!{child}({})", held.iter().collect::<String>())
        }
        Action::Escalate { cause } => format!("^{cause}"),
        Action::Down => "v".into(),
    }
}

/// Does what it is told, promptly, until nothing more is due; returns all the actions.
fn obey(supervisor: &mut Supervisor<char>, at: u64, event: Event<char>) -> String {
    obey_all(supervisor, at, [event].into())
}

fn obey_all(
    supervisor: &mut Supervisor<char>,
    mut at: u64,
    mut events: VecDeque<Event<char>>,
) -> String {
    let mut said = Vec::new();
    loop {
        let event = match (events.pop_front(), supervisor.next_deadline()) {
            (Some(event), _) => event,
            (None, Some(deadline)) => {
                at = deadline.as_millis();
                Event::Tick
            }
            (None, None) => return said.join(" "),
        };
        supervisor.handle(Time::from_millis(at), event).unwrap();
        while let Some(action) = supervisor.poll_action() {
            said.push(written(&action));
            match action {
                Action::Start { child } => events.push_back(up(child)),
                Action::Stop { child } => events.push_back(exits(child, Shutdown)),
                _ => {}
            }
        }
    }
}

fn stored<K>(supervisor: &Supervisor<K>) -> Supervisor<K>
where
    K: Clone + Ord + Debug + Encode<()> + for<'b> Decode<'b, ()>,
{
    minicbor::decode(&minicbor::to_vec(supervisor).unwrap()).unwrap()
}

fn add(child: char, restart: RestartType) -> Event<char> {
    Event::Add { child, restart }
}

fn remove(child: char) -> Event<char> {
    Event::Remove { child }
}

fn up(child: char) -> Event<char> {
    Event::Started { child }
}

/// With the longest jitter, so that rows can name the instant.
fn exits(child: char, exit: Exit) -> Event<char> {
    Event::Exited {
        child,
        exit,
        random: u64::MAX,
    }
}

fn fails(child: char) -> Event<char> {
    exits(child, Abnormal)
}

fn stops(child: char) -> Event<char> {
    exits(child, Shutdown)
}

/// Lower case is lost idle, upper case at work.
fn lost(children: &str) -> Event<char> {
    let children = children
        .chars()
        .map(|c| (c.to_ascii_lowercase(), c.is_ascii_uppercase()))
        .collect();
    Event::Lost {
        children,
        random: 1,
    }
}

fn drained(child: char) -> Event<char> {
    Event::Drained { child }
}

fn pardon(child: char) -> Event<char> {
    Event::Pardon { child }
}

#[test]
fn strategy_restart_type_and_exit_decide_as_in_otp() {
    // `b` is the one that exits; `a` started before it, `c` after it.
    for (restart, exit, expected) in [
        (Permanent, Normal, ["+b", "-c -a +a +b +c", "-c +b +c"]),
        (Permanent, Shutdown, ["+b", "-c -a +a +b +c", "-c +b +c"]),
        (Permanent, Abnormal, ["+b", "-c -a +a +b +c", "-c +b +c"]),
        (Transient, Normal, ["~b", "", ""]),
        (Transient, Shutdown, ["~b", "", ""]),
        (Transient, Abnormal, ["+b", "-c -a +a +b +c", "-c +b +c"]),
        (Temporary, Normal, ["~b"; 3]),
        (Temporary, Shutdown, ["~b"; 3]),
        (Temporary, Abnormal, ["~b"; 3]),
    ] {
        for (strategy, expected) in STRATEGIES.into_iter().zip(expected) {
            let mut supervisor = Supervisor::new(Policy::new(strategy));
            for (child, restart) in [('a', Permanent), ('b', restart), ('c', Permanent)] {
                add_running(&mut supervisor, child, restart);
            }
            let said = obey(&mut supervisor, 1, exits('b', exit));
            assert_eq!(said, expected, "{strategy:?}, {restart:?} after {exit:?}");
        }
    }
}

#[test]
fn group_restart_starts_a_transient_child_that_had_ended_and_drops_temporary_ones() {
    let mut supervisor = running(OneForAll, "a");
    add_running(&mut supervisor, 'b', Transient);
    add_running(&mut supervisor, 'c', Temporary);
    assert_eq!(obey(&mut supervisor, 1, exits('b', Normal)), "");
    assert_eq!(supervisor.state(&'b'), Some(ChildState::Stopped));
    assert_eq!(obey(&mut supervisor, 2, fails('a')), "-c ~c +a +b");
}

#[test]
fn sixth_restart_within_ten_seconds_escalates_and_one_later_does_not() {
    for (sixth_at, expected) in [(10_000, "-c -a"), (10_001, "")] {
        let mut supervisor = running(OneForOne, "abc");
        for at in [0, 1_000, 2_500, 4_500, 8_000] {
            assert_eq!(obey(&mut supervisor, at, fails('b')), "+b");
        }
        assert_eq!(supervisor.restarts_in_window(Time::from_millis(8_000)), 5);
        check_from(supervisor, &[(sixth_at, fails('b'), expected)]);
    }
}

#[test]
fn escalation_stops_children_in_reverse_order_and_speaks_when_all_are_down() {
    let mut supervisor = running(OneForOne, "abc");
    supervisor.policy.intensity = Intensity {
        restarts: 0,
        window: Duration::from_secs(1),
    };
    let supervisor = check_from(
        supervisor,
        &[
            (1, fails('b'), "-c -a"),
            (2, stops('a'), ""),
            (2, Event::Shutdown, "AlreadyGoingDown"),
            (2, Event::Start, "NotDown"),
            (3, add('d', Permanent), ""), // starts when the supervisor does
            (4, fails('c'), "^b"),
            (5, Event::Shutdown, "AlreadyGoingDown"),
            (6, Event::Tick, ""),
        ],
    );
    assert!(supervisor.is_down());
    assert_eq!(supervisor.next_deadline(), None);
    for strategy in STRATEGIES {
        let mut supervisor = supervisor.clone();
        supervisor.policy.strategy = strategy;
        check_from(
            supervisor,
            &[(7, Event::Start, "+a +b +c +d"), (8, up('a'), "")],
        );
    }
}

#[test]
fn escalation_of_an_only_child_needs_no_stop() {
    let mut supervisor = running(OneForAll, "a");
    supervisor.policy.intensity = Intensity {
        restarts: 0,
        window: Duration::from_secs(1),
    };
    check_from(
        supervisor,
        &[(1, fails('a'), "^a"), (2, fails('a'), "NotUp")],
    );
}

#[test]
fn intensity_begins_anew_when_the_parent_starts_the_supervisor_again() {
    let mut supervisor = running(OneForOne, "a");
    supervisor.policy.intensity = Intensity {
        restarts: 1,
        window: Duration::from_secs(60),
    };
    check_from(
        supervisor,
        &[
            (0, fails('a'), ""),
            (100, Event::Tick, "+a"),
            (200, fails('a'), "^a"),
            (300, Event::Start, "+a"),
            (400, fails('a'), ""),
            (900, Event::Tick, "+a"), // its own backoff goes on: the third failure waits 400
            (950, fails('a'), "^a"),
        ],
    );
}

#[test]
fn shutdown_stops_children_in_reverse_order_and_forgets_pending_restarts() {
    check(
        OneForOne,
        "abc",
        &[
            (1, fails('b'), ""),
            (2, Event::Shutdown, "-c -a"),
            (3, stops('c'), ""),
            (4, stops('a'), "v"),
            (500, Event::Tick, ""),
            (600, Event::Start, "+a +b +c"),
        ],
    );
}

#[test]
fn consecutive_failures_wait_twice_as_long_each_until_ten_seconds_run_clean() {
    let mut supervisor = running(OneForOne, "a");
    supervisor.policy.intensity.restarts = 100;
    check_from(
        supervisor,
        &[
            (1_000, fails('a'), ""),
            (1_099, Event::Tick, ""),
            (1_100, Event::Tick, "+a"),
            (1_100, fails('a'), ""), // a start that fails is a failure
            (1_299, Event::Tick, ""),
            (1_300, Event::Tick, "+a"),
            (1_400, up('a'), ""),
            (11_399, fails('a'), ""), // one millisecond short of clean
            (11_798, Event::Tick, ""),
            (11_799, Event::Tick, "+a"),
            (12_000, up('a'), ""),
            (22_000, fails('a'), ""), // exactly clean: the first failure again
            (22_099, Event::Tick, ""),
            (22_100, Event::Tick, "+a"),
        ],
    );
}

#[test]
fn group_waits_for_every_exit_and_for_the_backoff_whichever_is_later() {
    check(
        OneForAll,
        "abc",
        &[
            (0, fails('b'), "-c -a"),
            (10, stops('a'), ""),
            (20, stops('c'), ""),
            (99, Event::Tick, ""),
            (100, Event::Tick, "+a +b +c"),
            (101, up('a'), ""),
            (102, fails('a'), "-c -b"), // starting children are stopped too
            (103, up('b'), "NotStarting"),
            (900, stops('b'), ""),
            (901, stops('c'), "+a +b +c"),
        ],
    );
}

#[test]
fn sibling_that_fails_while_its_group_stops_is_part_of_the_same_restart() {
    let supervisor = check(
        OneForAll,
        "abc",
        &[
            (0, fails('b'), "-c -a"),
            (1, fails('a'), ""),
            (2, fails('c'), ""),
        ],
    );
    assert_eq!(supervisor.restarts_in_window(Time::from_millis(2)), 1);
    // And it does not back off for it: the group is due with `b`.
    assert_eq!(supervisor.next_deadline(), Some(Time::from_millis(100)));
}

#[test]
fn failure_before_the_rest_widens_the_group_and_counts_on_its_own() {
    let supervisor = check(
        RestForOne,
        "abcd",
        &[
            (0, fails('c'), "-d"),
            (10, fails('b'), ""), // its rest is down or stopping already
            (50, stops('d'), ""),
            (109, Event::Tick, ""),
            (110, Event::Tick, "+b +c +d"),
        ],
    );
    assert_eq!(supervisor.restarts_in_window(Time::from_millis(110)), 2);
}

#[test]
fn child_added_while_its_group_is_down_starts_with_it() {
    let rows = [
        (0, fails('b'), "-a"),
        (1, add('c', Permanent), ""),
        (2, stops('a'), ""),
        (100, Event::Tick, "+a +b +c"),
    ];
    check(OneForAll, "ab", &rows);
}

#[test]
fn removed_child_is_stopped_then_forgotten_and_disturbs_no_sibling() {
    for strategy in STRATEGIES {
        check(
            strategy,
            "abc",
            &[
                (0, remove('b'), "-b"),
                (1, remove('b'), "BeingRemoved"),
                (1, add('b', Permanent), "AlreadyPresent"),
                (2, fails('b'), "~b"),
                (3, remove('b'), "Unknown"),
                (4, add('b', Permanent), "+b"),
            ],
        );
    }
    check(
        OneForOne,
        "a",
        &[
            (0, fails('a'), ""),
            (1, remove('a'), "~a"),
            (100, Event::Tick, ""),
        ],
    );
}

#[test]
fn child_removed_while_its_group_stops_does_not_come_back() {
    let rows = [
        (0, fails('b'), "-c -a"),
        (1, remove('c'), ""),
        (2, remove('b'), "~b"),
        (3, stops('c'), "~c"),
        (4, stops('a'), ""),
        (100, Event::Tick, "+a"),
    ];
    check(OneForAll, "abc", &rows);
}

#[test]
fn late_duplicate_and_unknown_reports_are_refused() {
    check(
        OneForOne,
        "a",
        &[
            (0, up('a'), "NotStarting"),
            (0, add('a', Temporary), "AlreadyPresent"),
            (0, Event::Start, "NotDown"),
            (1, fails('a'), ""),
            (2, fails('a'), "NotUp"),
            (2, lost("A"), "NotUp"),
            (2, drained('a'), "NotUp"),
            (2, up('a'), "NotStarting"),
            (2, pardon('a'), "NotQuarantined"),
            (3, fails('z'), "Unknown"),
            (3, lost("az"), "Unknown"),
            (3, lost(""), "NotUp"),
            (3, drained('z'), "Unknown"),
            (3, up('z'), "Unknown"),
            (3, remove('z'), "Unknown"),
            (3, pardon('z'), "Unknown"),
        ],
    );
}

#[test]
fn node_loss_and_drain_restart_at_once_and_count_as_no_restart() {
    for strategy in STRATEGIES {
        let mut supervisor = running(strategy, "a");
        for round in 0..20 {
            let event = if round % 2 == 0 {
                lost("a")
            } else {
                drained('a')
            };
            assert_eq!(feed(&mut supervisor, round, event).as_deref(), Ok("+a"));
            assert_eq!(feed(&mut supervisor, round, up('a')).as_deref(), Ok(""));
        }
        assert_eq!(supervisor.restarts_in_window(Time::from_millis(20)), 0);
        // Nor has its backoff grown.
        check_from(
            supervisor,
            &[(100, fails('a'), ""), (200, Event::Tick, "+a")],
        );
    }
}

#[test]
fn group_lost_in_part_restarts_as_one() {
    for (strategy, event, expected) in [
        (OneForOne, lost("bd"), "+b +d"),
        (OneForAll, lost("bd"), "-c -a +a +b +c +d"),
        (OneForAll, lost("dcba"), "+a +b +c +d"),
        (OneForAll, lost("bb"), "-d -c -a +a +b +c +d"),
        (OneForAll, drained('b'), "-d -c -a +a +b +c +d"),
        (RestForOne, lost("db"), "-c +b +c +d"),
        (RestForOne, drained('d'), "+d"),
    ] {
        let mut supervisor = running(strategy, "abcd");
        assert_eq!(
            obey(&mut supervisor, 1, event.clone()),
            expected,
            "{strategy:?} {event:?}"
        );
        assert_eq!(supervisor.restarts_in_window(Time::from_millis(1)), 0);
    }
}

#[test]
fn loss_ends_a_temporary_child_and_a_drain_only_moves_it() {
    for (event, expected) in [(lost("a"), "~a"), (drained('a'), "+a")] {
        let mut supervisor = Supervisor::new(Policy::new(OneForOne));
        add_running(&mut supervisor, 'a', Temporary);
        check_from(supervisor, &[(1, event, expected)]);
    }
}

/// Loses `a` at work, lets it start again and run; returns when it was running.
fn strike(supervisor: &mut Supervisor<char>, at: u64) -> u64 {
    assert_eq!(
        feed(supervisor, at, lost("A")).as_deref(),
        Ok(""),
        "a strike waits"
    );
    let due = supervisor.next_deadline().unwrap().as_millis();
    assert_eq!(feed(supervisor, due, Event::Tick).as_deref(), Ok("+a"));
    feed(supervisor, due, up('a')).unwrap();
    due
}

#[test]
fn strikes_back_off_and_the_third_quarantines_until_a_pardon() {
    let mut supervisor = running(OneForOne, "ab");
    let first = strike(&mut supervisor, 0);
    assert!((50..=100).contains(&first), "first strike waited {first}");
    let second = strike(&mut supervisor, first) - first;
    assert!(
        (1_000..=2_000).contains(&second),
        "second strike waited {second}"
    );
    let supervisor = check_from(
        supervisor,
        &[
            (5_000, lost("A"), "!a()"),
            (5_001, fails('a'), "NotUp"),
            (90_000, Event::Tick, ""),
            (90_000, pardon('a'), "+a"),
            (90_000, pardon('a'), "NotQuarantined"),
        ],
    );
    assert_eq!(
        supervisor.strikes(Time::from_millis(90_000), &'a'),
        Some(Strikes::NONE)
    );
    assert_eq!(supervisor.restarts_in_window(Time::from_millis(5_000)), 0);
}

#[test]
fn strikes_are_cleared_by_exactly_ten_seconds_of_clean_running() {
    for (ran, expected) in [(9_999, "!a()"), (10_000, "")] {
        let mut supervisor = running(OneForOne, "a");
        let mut at = 0;
        for _ in 1..STRIKES_MAX {
            at = strike(&mut supervisor, at);
        }
        let standing = supervisor
            .strikes(Time::from_millis(at + ran), &'a')
            .unwrap();
        assert_eq!(
            standing == Strikes::NONE,
            expected.is_empty(),
            "after {ran}"
        );
        check_from(supervisor, &[(at + ran, lost("A"), expected)]);
    }
}

#[test]
fn clean_running_that_ends_in_a_stop_clears_strikes_too() {
    let mut supervisor = running(OneForAll, "ab");
    feed(&mut supervisor, 0, lost("Ab")).unwrap();
    obey(&mut supervisor, 0, Event::Tick);
    assert_eq!(
        supervisor
            .strikes(Time::from_millis(0), &'a')
            .unwrap()
            .count(),
        1
    );
    check_from(supervisor.clone(), &[(60_000, fails('b'), "-a")]);
    feed(&mut supervisor, 60_000, fails('b')).unwrap();
    assert_eq!(
        supervisor.strikes(Time::from_millis(60_000), &'a'),
        Some(Strikes::NONE)
    );
}

#[test]
fn starting_counts_as_work_and_idle_running_does_not() {
    for (report_start, strikes) in [(true, 0), (false, 1)] {
        let mut supervisor = Supervisor::new(Policy::new(OneForOne));
        feed(&mut supervisor, 0, add('a', Permanent)).unwrap();
        if report_start {
            feed(&mut supervisor, 0, up('a')).unwrap();
        }
        feed(&mut supervisor, 1, lost("a")).unwrap();
        assert_eq!(
            supervisor
                .strikes(Time::from_millis(1), &'a')
                .unwrap()
                .count(),
            strikes
        );
    }
}

#[test]
fn child_at_work_that_is_lost_while_stopping_gets_its_strike_and_delays_its_group() {
    let supervisor = check(
        OneForAll,
        "ab",
        &[(0, drained('b'), "-a"), (5, lost("A"), "")],
    );
    assert_eq!(
        supervisor
            .strikes(Time::from_millis(5), &'a')
            .unwrap()
            .count(),
        1
    );
    let due = supervisor.next_deadline().unwrap().as_millis();
    assert!((55..=105).contains(&due), "due at {due}");
}

/// A supervisor of `abcd` in which `b` has two strikes and everything runs at `at`.
fn two_strikes_on_b(strategy: Strategy) -> (Supervisor<char>, u64) {
    let mut supervisor = running(strategy, "abcd");
    for at in [0, 2_500] {
        obey(&mut supervisor, at, lost("B"));
    }
    assert_eq!(
        supervisor
            .strikes(Time::from_millis(5_000), &'b')
            .unwrap()
            .count(),
        2
    );
    (supervisor, 5_000)
}

#[test]
fn quarantine_holds_the_whole_group_until_pardon_or_removal() {
    for (release, expected) in [(pardon('b'), "+a +b +c +d"), (remove('b'), "~b +a +c +d")] {
        let (supervisor, at) = two_strikes_on_b(OneForAll);
        let supervisor = check_from(
            supervisor,
            &[
                (at, lost("aBcd"), "!b(acd)"),
                (at + 1, add('e', Permanent), ""),
                (at + 99_000, Event::Tick, ""),
            ],
        );
        assert_eq!(supervisor.next_deadline(), None);
        assert_eq!(supervisor.state(&'a'), Some(ChildState::Held));
        assert_eq!(supervisor.state(&'b'), Some(ChildState::Quarantined));
        check_from(
            supervisor,
            &[(at + 99_000, release, &format!("{expected} +e"))],
        );
    }
}

#[test]
fn quarantine_stops_the_running_rest_and_leaves_those_before_it_alone() {
    let (supervisor, at) = two_strikes_on_b(RestForOne);
    let supervisor = check_from(
        supervisor,
        &[
            (at, lost("B"), "-d -c !b(cd)"),
            (at + 1, stops('c'), ""),
            (at + 2, stops('d'), ""),
            (at + 3, fails('a'), ""),
            (at + 103, Event::Tick, "+a"), // what comes before may restart; the rest stays held
            (at + 104, up('a'), ""),
            (at + 105, pardon('b'), "+b +c +d"),
        ],
    );
    assert_eq!(supervisor.next_deadline(), None);
}

#[test]
fn quarantine_outlives_a_restart_of_the_supervisor() {
    for (strategy, started, pardoned) in [
        (OneForOne, "+a +c +d", "+b"),
        (OneForAll, "", "+a +b +c +d"),
        (RestForOne, "+a", "+b +c +d"),
    ] {
        let (mut supervisor, at) = two_strikes_on_b(strategy);
        obey(&mut supervisor, at, lost("B"));
        assert!(obey(&mut supervisor, at, Event::Shutdown).ends_with('v'));
        check_from(
            supervisor,
            &[(at, Event::Start, started), (at, pardon('b'), pardoned)],
        );
    }
}

#[test]
fn pardon_of_a_supervisor_that_is_down_waits_for_its_start() {
    let (mut supervisor, at) = two_strikes_on_b(OneForOne);
    obey(&mut supervisor, at, lost("B"));
    obey(&mut supervisor, at, Event::Shutdown);
    check_from(
        supervisor,
        &[(at, pardon('b'), ""), (at, Event::Start, "+a +b +c +d")],
    );
}

#[test]
fn states_say_what_each_child_is_waiting_for() {
    let supervisor = check(
        OneForOne,
        "ab",
        &[(7, fails('a'), ""), (8, add('c', Permanent), "+c")],
    );
    let until = ClusterTime::from_millis(107);
    let expected = [
        (&'a', Permanent, ChildState::Waiting { until }),
        (
            &'b',
            Permanent,
            ChildState::Running {
                since: ClusterTime::ZERO,
            },
        ),
        (&'c', Permanent, ChildState::Starting),
    ];
    assert_eq!(supervisor.children().collect::<Vec<_>>(), expected);

    let rows = [(7, fails('a'), "-b"), (9, stops('b'), "")];
    let mut supervisor = check(OneForAll, "ab", &rows[..1]);
    assert_eq!(supervisor.state(&'a'), Some(ChildState::Held));
    assert_eq!(supervisor.state(&'b'), Some(ChildState::Stopping));
    supervisor = check_from(supervisor, &rows[1..]);
    assert_eq!(supervisor.state(&'b'), Some(ChildState::Waiting { until }));
    assert_eq!(supervisor.state(&'z'), None);
}

#[test]
fn stored_bytes_that_contradict_themselves_are_refused() {
    let good = minicbor::to_vec(running(OneForOne, "ab")).unwrap();
    for cut in 0..good.len() {
        assert!(
            minicbor::decode::<Supervisor<char>>(&good[..cut]).is_err(),
            "cut at {cut}"
        );
    }
    // Any one byte changed: an error or a supervisor, never a panic, neither then nor later.
    for place in 0..good.len() {
        for byte in 0..=u8::MAX {
            let mut bad = good.clone();
            bad[place] = byte;
            let Ok(mut supervisor) = minicbor::decode::<Supervisor<char>>(&bad) else {
                continue;
            };
            for event in [
                add('c', Permanent),
                lost("A"),
                fails('b'),
                Event::Shutdown,
                Event::Start,
                Event::Tick,
            ] {
                let _ = supervisor.handle(Time::from_millis(50_000), event);
            }
        }
    }
}

#[test]
fn stored_supervisors_that_no_events_could_have_made_are_refused() {
    fn refuses(of: &Supervisor<char>, edit: impl FnOnce(&mut Supervisor<char>)) {
        let mut bad = of.clone();
        edit(&mut bad);
        let bytes = minicbor::to_vec(&bad).unwrap();
        let read = minicbor::decode::<Supervisor<char>>(&bytes);
        assert!(read.is_err(), "{bad:?}");
    }
    let good = running(OneForAll, "ab");
    assert_eq!(stored(&good), good);
    let until = ClusterTime::ZERO;
    refuses(&good, |s| s.policy.backoff.first = Duration::MAX);
    refuses(&good, |s| s.policy.intensity.window = Duration::MAX);
    // Six restarts are kept at most, oldest first.
    refuses(&good, |s| {
        s.policy.intensity.restarts = u16::MAX;
        for _ in 0..7 {
            s.history.allows_one_more(until, s.policy.intensity);
        }
        s.policy.intensity.restarts = 5;
    });
    refuses(&good, |s| s.group = Some(Group { from: 1, until }));
    refuses(&good, |s| s.mode = Mode::Down);
    refuses(&good, |s| s.mode = Mode::GoingDown { cause: None });
    let mut none: Supervisor<char> = Supervisor::new(Policy::new(OneForAll));
    none.handle(Time::ZERO, Event::Shutdown).unwrap();
    none.actions.clear();
    assert_eq!(stored(&none), none);
    refuses(&none, |s| s.mode = Mode::GoingDown { cause: None });
    refuses(&none, |s| s.group = Some(Group { from: 0, until }));
}

#[test]
fn hundred_thousand_children_are_the_limit_and_still_restart_as_one() {
    let mut supervisor: Supervisor<u32> = Supervisor::new(Policy::new(OneForAll));
    let now = Time::from_millis(1);
    for child in 0..CHILDREN_MAX as u32 {
        supervisor
            .handle(
                now,
                Event::Add {
                    child,
                    restart: Permanent,
                },
            )
            .unwrap();
        supervisor.handle(now, Event::Started { child }).unwrap();
    }
    let one_more = Event::Add {
        child: u32::MAX,
        restart: Permanent,
    };
    assert_eq!(supervisor.handle(now, one_more), Err(SupervisorError::Full));
    supervisor.actions.clear();

    // Would take hours if an exit cost more than a look-up.
    for child in 0..CHILDREN_MAX as u32 {
        supervisor
            .handle(
                now,
                Event::Exited {
                    child,
                    exit: Abnormal,
                    random: 0,
                },
            )
            .unwrap();
    }
    supervisor.actions.clear();
    let due = supervisor.next_deadline().unwrap();
    supervisor.handle(due, Event::Tick).unwrap();
    let started = core::iter::from_fn(|| supervisor.poll_action());
    assert!(started.eq((0..CHILDREN_MAX as u32).map(|child| Action::Start { child })));
}

/// A tiny model that knows only what was reported and what was asked for.
struct Reference {
    policy: Policy,
    /// Those with a process, and whether they were told to stop.
    up: BTreeMap<char, bool>,
    /// In start order.
    known: Vec<(char, RestartType)>,
    restarts: Vec<u64>,
}

impl Reference {
    fn too_many(&self, now: u64) -> bool {
        let window = self.policy.intensity.window.as_millis() as u64;
        let within = self
            .restarts
            .iter()
            .filter(|at| now - **at <= window)
            .count();
        within > usize::from(self.policy.intensity.restarts)
    }

    fn accepted(&mut self, now: u64, event: &Event<char>) {
        match event {
            Event::Add { child, restart } => self.known.push((*child, *restart)),
            Event::Exited { child, exit, .. } => {
                let told = self
                    .up
                    .remove(child)
                    .expect("the exit of a child that is down");
                let restart = self
                    .known
                    .iter()
                    .find(|(known, _)| known == child)
                    .unwrap()
                    .1;
                if !told && restart.restarts_after(*exit) {
                    self.restarts.push(now);
                }
            }
            Event::Drained { child } => {
                self.up
                    .remove(child)
                    .expect("the drain of a child that is down");
            }
            Event::Lost { children, .. } => {
                children.iter().for_each(|(child, _)| {
                    self.up.remove(child);
                });
            }
            Event::Start => self.restarts.clear(),
            _ => {}
        }
    }

    fn obeyed(&mut self, actions: &[Action<char>]) {
        let place = |child| {
            self.known
                .iter()
                .position(|(known, _)| known == child)
                .unwrap()
        };
        let (mut starts, mut stops) = (Vec::new(), Vec::new());
        for action in actions {
            match action {
                Action::Start { child } => starts.push(place(child)),
                Action::Stop { child } => stops.push(place(child)),
                _ => {}
            }
        }
        assert!(
            stops.iter().rev().is_sorted(),
            "stops not in reverse start order: {actions:?}"
        );
        // Children that wait alone start when each is due; a group starts in order.
        let alone = self.policy.strategy == OneForOne;
        assert!(
            alone || starts.is_sorted(),
            "starts not in start order: {actions:?}"
        );
        for action in actions {
            match action {
                Action::Start { child } => {
                    assert_eq!(self.up.insert(*child, false), None, "two starts of {child}");
                }
                Action::Stop { child } => {
                    assert_eq!(self.up.insert(*child, true), Some(false), "stop of {child}");
                }
                Action::Forget { child } => {
                    assert!(
                        !self.up.contains_key(child),
                        "{child} forgotten while it was up"
                    );
                    self.known.retain(|(known, _)| known != child);
                }
                Action::Escalate { .. } => {
                    assert!(self.up.is_empty(), "escalated before all were down");
                }
                Action::Down => assert!(self.up.is_empty(), "down before all were down"),
                Action::Quarantine { child, .. } => assert!(!self.up.contains_key(child)),
            }
        }
    }
}

/// Xorshift64 (Marsaglia, 2003).
struct Dice(u64);

impl Dice {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }

    fn child(&mut self) -> char {
        char::from(b'a' + self.below(7) as u8)
    }

    fn event(&mut self) -> Event<char> {
        let child = self.child();
        let random = self.next();
        match self.below(100) {
            0..10 => {
                let restart = [Permanent, Permanent, Transient, Temporary][self.below(4) as usize];
                Event::Add { child, restart }
            }
            10..13 => Event::Remove { child },
            13..45 => Event::Started { child },
            45..75 => {
                let exit = [Normal, Shutdown, Abnormal][self.below(3) as usize];
                Event::Exited {
                    child,
                    exit,
                    random,
                }
            }
            75..82 => {
                let children = (0..self.below(4)).map(|_| (self.child(), self.below(2) == 0));
                Event::Lost {
                    children: children.collect(),
                    random,
                }
            }
            82..86 => Event::Drained { child },
            86..89 => Event::Pardon { child },
            89 => Event::Shutdown,
            90..93 => Event::Start,
            _ => Event::Tick,
        }
    }
}

/// Whatever happens in whatever order: the reference finds nothing wrong, and once failures stop,
/// everything that should run runs.
fn walk(strategy: Strategy, seed: u64) {
    let intensity = Intensity {
        restarts: 3,
        window: Duration::from_secs(2),
    };
    let backoff = Backoff {
        first: Duration::from_millis(50),
        max: Duration::from_secs(1),
    };
    let policy = Policy {
        strategy,
        intensity,
        backoff,
    };
    let mut dice = Dice(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
    let mut supervisor = Supervisor::new(policy);
    let mut reference = Reference {
        policy,
        up: BTreeMap::new(),
        known: Vec::new(),
        restarts: Vec::new(),
    };
    let mut now = 0;

    for _ in 0..400 {
        now += [0, 1, 30, 300, 3_000][dice.below(5) as usize];
        let event = dice.event();
        let before = supervisor.clone();
        let restarts = reference.restarts.len();
        if supervisor
            .handle(Time::from_millis(now), event.clone())
            .is_err()
        {
            assert_eq!(
                supervisor, before,
                "{event:?} was refused and yet changed something"
            );
            continue;
        }
        let actions: Vec<_> = core::iter::from_fn(|| supervisor.poll_action()).collect();
        reference.accepted(now, &event);
        reference.obeyed(&actions);
        if reference.restarts.len() > restarts {
            let up = matches!(supervisor.mode, Mode::Up);
            assert_eq!(
                up,
                !reference.too_many(now),
                "intensity after {event:?} at {now}"
            );
        } else if matches!(before.mode, Mode::Up) && event != Event::Shutdown {
            assert!(
                matches!(supervisor.mode, Mode::Up),
                "{event:?} brought it down"
            );
        }
        assert!(supervisor.history.within(ClusterTime::ZERO, Duration::MAX) <= 4);
        assert_eq!(stored(&supervisor), supervisor);
    }

    let mut recovery: VecDeque<Event<char>> = supervisor
        .children()
        .filter_map(|(child, _, state)| match state {
            ChildState::Starting => Some(up(*child)),
            ChildState::Stopping => Some(stops(*child)),
            ChildState::Quarantined => Some(pardon(*child)),
            _ => None,
        })
        .collect();
    if !matches!(supervisor.mode, Mode::Up) {
        recovery.push_back(Event::Start);
    }
    obey_all(&mut supervisor, now, recovery);
    for (child, restart, state) in supervisor.children() {
        let runs = matches!(state, ChildState::Running { .. });
        let ended = restart == Transient && state == ChildState::Stopped;
        assert!(runs || ended, "{child}, {restart:?}, ends {state:?}");
    }
}

#[test]
fn random_walks_never_start_twice_never_exceed_the_intensity_and_always_recover() {
    for seed in 0..300 {
        for strategy in STRATEGIES {
            walk(strategy, seed);
        }
    }
}

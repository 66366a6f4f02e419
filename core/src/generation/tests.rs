use super::*;

fn rebuilt(state: &ViewState, range: Range<Micros>, now: Micros) -> ViewState {
    let scope = Scope { rebuild: Some(range), rollback: None };
    let (state, opened) = state.begin(Cut::default(), scope, now).unwrap();
    state.publish(&opened, now, None).unwrap()
}

fn covered(state: &ViewState, now: Micros) -> ViewState {
    let (state, opened) = state.begin(Cut::default(), Scope::default(), now).unwrap();
    state.publish(&opened, now, None).unwrap()
}

#[test]
fn what_a_recompute_replaced_can_come_back_with_its_bases() {
    let first = covered(&ViewState::default(), 10);
    let second = rebuilt(&covered(&first, 20), 0..100, 30);
    let third = covered(&rebuilt(&second, 50..60, 40), 45);
    assert_eq!(third.published.bases, [(50..60, 2), (0..100, 1)]);
    let was = |at| third.kept_at(at).map(|kept| kept.published.bases.clone());
    assert_eq!((was(5), was(29)), (Some(vec![]), Some(vec![])));
    assert_eq!((was(30), was(39), was(40)), (Some(vec![(0..100, 1)]), Some(vec![(0..100, 1)]), None));
    let scope = Scope { rebuild: None, rollback: Some(third.kept_at(35).unwrap().published.generation) };
    let (open, opened) = third.begin(Cut::default(), scope, 50).unwrap();
    let back = open.publish(&opened, 50, None).unwrap();
    assert_eq!((&back.published.bases, back.published.bases_since), (&vec![(0..100, 1)], Some(50)));
    assert_eq!(back.kept_at(45).unwrap().published.bases, third.published.bases, "and there is a way forth");
}

#[test]
fn chunks_go_once_nothing_that_is_kept_refers_to_them() {
    let mut state = rebuilt(&rebuilt(&covered(&ViewState::default(), 10), 0..100, 20), 50..150, 30);
    state.forget(15, 15, 16);
    assert_eq!((state.kept.len(), state.unused.len()), (2, 0));
    state.forget(20, 20, 16);
    assert_eq!(state.unused, [(0..100, 0)], "base 0 is still in force elsewhere, or kept");
    state.forget(30, 30, 16);
    assert_eq!((state.kept.len(), &state.unused[1..]), (0, &[(50..100, 1), (100..150, 0)][..]));
}

#[test]
fn horizons_only_rise_and_each_that_did_is_seen() {
    let mut state = ViewState::default();
    state.raise_horizon(60, 100);
    state.raise_rule_horizon(60, 1, 200);
    let before = state.clone();
    state.raise_horizon(60, 50);
    state.raise_rule_horizon(60, 1, 150);
    assert!(state == before && !state.rose_since(&before, 60));
    let raises: [fn(&mut ViewState); 3] = [
        |state| state.raise_horizon(60, 101),
        |state| state.raise_rule_horizon(60, 1, 201),
        |state| state.raise_rule_horizon(60, 0, -5),
    ];
    for raise in raises {
        let mut after = state.clone();
        raise(&mut after);
        assert!(after.rose_since(&before, 60) && !before.rose_since(&after, 60));
        assert!(!after.rose_since(&before, 10), "another width did not");
    }
}

#[test]
fn what_an_abandoned_rebuild_wrote_is_of_no_use() {
    let scope = Scope { rebuild: Some(0..100), rollback: None };
    let (open, _) = covered(&ViewState::default(), 10).begin(Cut::default(), scope, 20).unwrap();
    assert_eq!(open.given_up().unused, [(0..100, 1)]);
    let (next, opened) = open.begin(Cut::default(), Scope::default(), 30).unwrap();
    assert_eq!((opened.scope.rebuild, opened.base, next.unused), (Some(0..100), 2, vec![(0..100, 1)]));
}

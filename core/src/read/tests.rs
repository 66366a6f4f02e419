use super::base_ranges;

#[test]
fn every_period_is_read_once_under_its_latest_base() {
    let bases = vec![(10..20, 2), (0..30, 1)];
    assert_eq!(base_ranges(&bases, &(5..40)), [(5..10, 1), (10..20, 2), (20..30, 1), (30..40, 0)]);
    assert_eq!(base_ranges(&[], &(5..40)), [(5..40, 0)]);
    assert!(base_ranges(&bases, &(5..5)).is_empty());
}

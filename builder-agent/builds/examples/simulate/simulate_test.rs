use super::*;

const SMALL: Setup = Setup { members: 40, builds: 2500, slots: 4, seed: 7 };

#[test]
fn the_same_seed_prints_the_same_tables_and_another_seed_others() {
    let tables = tables(SMALL);
    assert_eq!(tables, super::tables(SMALL));
    assert_ne!(tables, super::tables(Setup { seed: 8, ..SMALL }));
    assert_eq!(tables.lines().filter(|line| line.starts_with("| fair")).count(), Shape::ALL.len());
}

/// The engine itself checks that every build runs once, in no more slots than there are, and that no slot is free while a
/// build waits.
fn summaries(shape: Shape) -> [Summary; 3] {
    let workload = shape.generate(SMALL);
    assert_eq!(workload.builds.len(), SMALL.builds);
    Kind::ALL.map(|kind| simulate(&workload, kind.start(&workload, SMALL.slots), SMALL.slots).0.summary())
}

#[test]
fn every_policy_uses_the_box_as_much_and_the_agents_makes_first_builds_wait_less() {
    for shape in Shape::ALL {
        let [fair, first_come, round_robin] = summaries(shape);
        for other in [&first_come, &round_robin] {
            // What is left at the last arrival differs a little; the work is the same.
            assert!((fair.utilisation - other.utilisation).abs() < 0.05, "{shape:?}: {fair:?} {other:?}");
        }
        assert!(fair.first.1 <= first_come.first.1, "{shape:?}: {fair:?} {first_come:?}");
        assert!(fair.light.0 <= first_come.light.0, "{shape:?}: {fair:?} {first_come:?}");
    }
}

#[test]
fn a_flood_delays_the_first_builds_of_others_by_less_than_a_build() {
    let [fair, first_come, _] = summaries(Shape::Flood);
    let longest = 4.0 * 3600.0;
    assert!(fair.first.1 < longest && fair.first.1 * 10.0 < first_come.first.1, "{fair:?} {first_come:?}");
}

#[test]
fn the_page_has_a_table_for_each_shape_with_the_usual_numbers() {
    let page = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/design/scheduling.md");
    let page = std::fs::read_to_string(&page).expect("the page");
    let (_, tables) = page.split_once("<!-- tables: start -->").expect("a start mark");
    let Setup { members, builds, slots, seed } = USUAL;
    let first = format!("{members} members, {builds} builds, {slots} slots, seed {seed}.");
    assert!(tables.contains(&first), "run `make simulate` and put what it prints on the page");
    for shape in Shape::ALL {
        assert!(tables.contains(&format!("### {}\n\n{}\n", shape.title(), shape.text())), "{shape:?}");
    }
}

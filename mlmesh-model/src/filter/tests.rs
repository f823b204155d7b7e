use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

#[derive(Debug, Clone, Default)]
struct Row(BTreeMap<String, Owned>);

#[derive(Debug, Clone)]
enum Owned {
    Number(f64),
    Whole(i64),
    Text(String),
}

impl Facts for Row {
    fn value(&self, field: &Field) -> Value<'_> {
        match self.0.get(&field.to_string()) {
            None => Value::Missing,
            Some(Owned::Number(number)) => Value::Number(*number),
            Some(Owned::Whole(whole)) => Value::Whole(*whole),
            Some(Owned::Text(text)) => Value::text(text),
        }
    }
}

fn row(pairs: &[(&str, Owned)]) -> Row {
    let pairs = pairs.iter();
    Row(pairs
        .map(|(name, value)| ((*name).to_owned(), value.clone()))
        .collect())
}

fn text(text: &str) -> Owned {
    Owned::Text(text.to_owned())
}

const NOW: Micros = Micros(1_000_000_000_000_000);

#[test]
fn expressions_hold_of_the_runs_they_describe() {
    let run = row(&[
        ("metrics.accuracy", Owned::Number(0.93)),
        ("metrics.loss", Owned::Number(f64::NAN)),
        ("metrics.\"val loss\"", Owned::Number(0.5)),
        ("metrics.accuracy.max", Owned::Number(0.95)),
        ("params.lr", text("0.1")),
        ("params.model", text("resnet")),
        ("tags.team", text("a b")),
        ("phase", text("failed")),
        ("id", text("abcdefgh")),
        ("name", text("digits")),
        ("trust", Owned::Whole(2)),
        ("created", Owned::Whole(NOW.0 - 3_600_000_000)),
        ("duration", Owned::Whole(90_000_000)),
        ("priority", Owned::Whole(-3)),
    ]);
    for (expression, expected) in [
        ("metrics.accuracy > 0.9 and params.lr <= 0.1", true),
        ("metrics.accuracy > 0.9 and not phase = failed", false),
        ("metrics.accuracy.max >= .95", true),
        ("metrics.\"val loss\"=5e-1", true),
        ("metrics.missing > 0", false),
        ("metrics.missing != 0", false),
        ("not metrics.missing > 0", true),
        ("metrics.loss < 1 or metrics.loss >= 1", false),
        ("metrics.loss = nan and metrics.loss != 1", true),
        ("metrics.accuracy < inf and metrics.accuracy > -inf", true),
        ("params.lr = 1e-1", true),
        ("params.lr = \"1e-1\"", false),
        ("params.model ~ net and params.model != 3", true),
        ("params.model > 3", false),
        ("params.lr in (0.01, 0.1)", true),
        ("params.lr not in (0.01, 0.1)", false),
        ("tags.team = 'a b'", true),
        ("id = abcd and id != b", true),
        ("name = digit", false),
        ("name in (x, digits)", true),
        ("phase in (failed, cancelled)", true),
        ("trust >= L2 and trust < l3", true),
        ("created > 2h ago and created < 30m ago", true),
        ("created > 2h", true),
        ("created < 2001-09-09T01:46:40.000001Z", true),
        ("created >= 2001-09-09", true),
        ("duration > 1m and duration <= 1.5m", true),
        ("priority < 0", true),
        ("(name = x or name = digits) and NOT (priority = 0)", true),
    ] {
        let filter: Filter = expression.parse().unwrap();
        assert_eq!(filter.matches(&run, NOW), expected, "{expression}");
        // Not-a-number is not equal to itself: the forms are.
        let back: Filter = filter.to_string().parse().unwrap();
        assert_eq!(format!("{back:?}"), format!("{filter:?}"), "{expression}");
    }
}

#[test]
fn errors_say_where_and_what_is_allowed() {
    for (expression, at, message, hint) in [
        (
            "metric > 3",
            0,
            "no field `metric`",
            "did you mean `metrics.NAME`?",
        ),
        (
            "phase = done",
            8,
            "`phase` cannot be compared with `done`",
            "completed",
        ),
        (
            "metrics.a > high",
            12,
            "cannot be compared with `high`",
            "a number",
        ),
        ("metrics.a ~ 3", 10, "has no `~`", "it takes `=`"),
        ("metrics. > 3", 8, "`metrics.` lacks a name", "metrics.loss"),
        ("metrics.\"a\"x > 3", 11, "`x` follows", ".steps"),
        ("name = a name = b", 9, "`name` follows a whole", "`and`"),
        ("(name = a", 9, "ends where `)` belongs", "close"),
        ("name = 'a", 7, "quotes are not closed", "`'`"),
        ("name ? a", 5, "`?` has no meaning", "operators"),
        ("name", 4, "ends where an operator belongs", "contains"),
        ("", 0, "ends where a field belongs", "fields are"),
        ("created > yesterday", 10, "`yesterday`", "2d ago"),
        ("ownr = ada", 0, "no field `ownr`", "did you mean `owner`?"),
        ("params.lr < low", 12, "`low`", "numbers"),
        ("logged.params < 1", 0, "no field", "`logged.params.NAME`"),
        ("logged.lr < 1", 0, "no field", "logged.tags.KEY"),
        (
            "logged.tags. = a",
            12,
            "`logged.tags.` lacks a name",
            "loss",
        ),
        ("name in a", 8, "`a` stands where `(`", "in (a"),
    ] {
        let error = expression.parse::<Filter>().unwrap_err();
        assert_eq!(error.at, at, "{expression}: {error}");
        assert!(error.message.contains(message), "{expression}: {error}");
        assert!(error.hint.contains(hint), "{expression}: {}", error.hint);
        let picture = error.picture(expression);
        assert_eq!(picture.lines().last().unwrap().len(), at + 3, "{picture}");
    }
    let deep = "(".repeat(DEPTH_MAX + 2);
    assert!(deep.parse::<Filter>().unwrap_err().hint.contains("nested"));
    let not = "not ".repeat(500);
    assert!(not.parse::<Filter>().unwrap_err().hint.contains("nested"));
    let long = "a".repeat(TEXT_BYTES_MAX + 1);
    assert!(long.parse::<Filter>().unwrap_err().hint.contains("4096"));
    let many = vec!["id=a"; CONDITIONS_MAX + 1].join(" or ");
    assert!(many.parse::<Filter>().unwrap_err().hint.contains("256"));
}

#[test]
fn orders_keep_what_is_missing_last() {
    let sort: Sort = "metrics.loss:desc".parse().unwrap();
    assert!(sort.descending);
    assert_eq!(sort.to_string().parse(), Ok(sort));
    assert!(
        "metrics.loss:down"
            .parse::<Sort>()
            .unwrap()
            .to_string()
            .contains("down")
    );
    assert!("loss".parse::<Sort>().is_err());
    let field = Field::Param("x".into());
    let values = [
        Value::Number(1.0),
        Value::Number(-2.5),
        Value::text("10"),
        Value::text("word"),
        Value::Number(f64::NAN),
        Value::Missing,
    ];
    for (descending, expected) in [(false, [1, 0, 2, 3, 4, 5]), (true, [2, 0, 1, 3, 4, 5])] {
        let mut places: Vec<usize> = (0..values.len()).collect();
        places.sort_by(|a, b| {
            let rank = |place: &usize| Rank::of(&field, &values[*place]);
            rank(a).order(&rank(b), descending)
        });
        assert_eq!(places, expected);
    }
}

#[test]
fn an_index_is_asked_for_no_less_than_matches() {
    let filter: Filter = "metrics.a > 1 and metrics.a <= 3 and metrics.b != 2 and id = x \
                          and metrics.a.min < 3"
        .parse()
        .unwrap();
    let range = Range {
        low: 1.0,
        high: 3.0,
    };
    let below = Range {
        high: 3.0,
        ..Range::ALL
    };
    let ranges = [("a", Statistic::Last, range), ("a", Statistic::Min, below)];
    assert_eq!(filter.needed_ranges(), ranges);
    let either: Filter = "metrics.a > 1 or metrics.b > 2".parse().unwrap();
    assert_eq!(either.needed_ranges(), []);
    let not: Filter = "not metrics.a > 1".parse().unwrap();
    assert_eq!(not.needed_ranges(), []);
}

fn names() -> impl Strategy<Value = String> {
    prop_oneof!["[a-z]{1,3}", "[ -~é\n]{1,6}", Just("a.min".to_owned())]
}

fn numbers() -> impl Strategy<Value = f64> {
    let odd = vec![0.0, -0.0, 0.5, f64::INFINITY, f64::NEG_INFINITY, f64::NAN];
    prop_oneof![proptest::sample::select(odd), any::<f64>()]
}

fn comparisons() -> impl Strategy<Value = Comparison> {
    use Comparison::*;
    proptest::sample::select(vec![Equal, Different, Less, AtMost, More, AtLeast])
}

fn conditions() -> impl Strategy<Value = Filter> {
    let statistics = vec![
        Statistic::Last,
        Statistic::Min,
        Statistic::Max,
        Statistic::Steps,
    ];
    let metrics = (names(), proptest::sample::select(statistics))
        .prop_map(|(name, statistic)| Field::Metric(name, statistic));
    let compared = (metrics, comparisons(), numbers()).prop_map(|(field, how, number)| {
        Filter::Is(field, Test::Compare(how, Literal::Number(number)))
    });
    let texts =
        (names(), proptest::collection::vec("[ -~]{0,5}", 1..4)).prop_map(|(name, texts)| {
            let texts = texts.into_iter().map(Literal::Text).collect();
            Filter::Is(Field::Tag(name), Test::In(texts))
        });
    let logged = (names(), "[ -~]{0,5}").prop_map(|(name, text)| {
        let test = Test::Compare(Comparison::Contains, Literal::Text(text));
        Filter::Is(Field::LoggedTag(name), test)
    });
    let times = (comparisons(), 0_i64..1 << 50)
        .prop_map(|(how, us)| Filter::Is(Field::Created, Test::Compare(how, Literal::Ago(us))));
    let params = (names(), any::<bool>(), comparisons(), numbers());
    let params = params.prop_map(|(name, is_logged, how, number)| {
        let field = match is_logged {
            true => Field::LoggedParam(name),
            false => Field::Param(name),
        };
        Filter::Is(field, Test::Compare(how, Literal::Number(number)))
    });
    prop_oneof![compared, texts, logged, times, params]
}

fn filters() -> impl Strategy<Value = Filter> {
    conditions().prop_recursive(4, 24, 3, |inner| {
        let terms = proptest::collection::vec(inner.clone(), 2..4);
        prop_oneof![
            terms.clone().prop_map(Filter::All),
            terms.prop_map(Filter::Any),
            inner.prop_map(|term| Filter::Not(Box::new(term))),
        ]
    })
}

/// The same in the plainest way.
fn naive(filter: &Filter, a: Option<f64>) -> bool {
    match filter {
        Filter::All(terms) => !terms.iter().any(|term| !naive(term, a)),
        Filter::Any(terms) => terms.iter().any(|term| naive(term, a)),
        Filter::Not(term) => !naive(term, a),
        Filter::Is(field, Test::Compare(how, Literal::Number(with)))
            if *field == Field::Metric("a".into(), Statistic::Last) =>
        {
            let Some(a) = a else { return false };
            let equal = a == *with || a.is_nan() && with.is_nan();
            match how {
                Comparison::Equal => equal,
                Comparison::Different => !equal,
                Comparison::Less => a < *with,
                Comparison::AtMost => a <= *with,
                Comparison::More => a > *with,
                Comparison::AtLeast => a >= *with,
                Comparison::Contains => false,
            }
        }
        Filter::Is(..) => false,
    }
}

proptest! {
    #[test]
    fn what_is_printed_reads_back(filter in filters()) {
        let text = filter.to_string();
        if text.len() <= TEXT_BYTES_MAX {
            let back: Filter = text.parse().map_err(|error| {
                TestCaseError::fail(format!("{text}: {error}"))
            })?;
            // Not-a-number is not equal to itself: the texts are.
            prop_assert_eq!(back.to_string(), text);
            prop_assert_eq!(format!("{back:?}"), format!("{filter:?}"));
        }
    }

    #[test]
    fn answers_are_those_of_the_plain_reference(filter in filters(), a in proptest::option::of(numbers())) {
        let run = row(&a.map(|a| ("metrics.a", Owned::Number(a))).into_iter().collect::<Vec<_>>());
        prop_assert_eq!(filter.matches(&run, NOW), naive(&filter, a));
        if let Some(a) = a
            && filter.matches(&run, NOW)
        {
            for (name, statistic, range) in filter.needed_ranges() {
                prop_assert!(name == "a" && statistic == Statistic::Last && range.has(a));
            }
        }
    }

    #[test]
    fn any_text_is_an_expression_or_says_why_not(text in "\\PC{0,40}|[a-z.\"()=<>~,!' 0-9-]{0,40}") {
        if let Err(error) = text.parse::<Filter>() {
            prop_assert!(error.at <= text.chars().count());
            prop_assert!(!error.hint.is_empty());
            let _ = error.picture(&text);
        }
        let _ = text.parse::<Sort>();
    }
}

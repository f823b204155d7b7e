//! The client against engines that are raw sockets.

use std::net::TcpListener;
use std::sync::atomic::Ordering;

use mlmesh_bench::{
    Arrivals, Bound, Endpoint, Fault, Lengths, Pace, Plan, PromptLength, Report, Run, Target,
    Watch, run,
};

use crate::server::{Server, chunked, send, stream};

pub(crate) fn plan(url: &str, requests: u64) -> Plan {
    Plan {
        target: Target::parse(url).unwrap(),
        endpoint: Endpoint::Chat,
        model: "tiny".to_owned(),
        stream: true,
        pace: Pace::Open {
            rate: 500.0,
            arrivals: Arrivals::Constant,
        },
        bound: Bound {
            requests: Some(requests),
            duration_us: None,
        },
        warmup_us: 0,
        timeout_us: 20_000_000,
        prompt: PromptLength::Chars(Lengths::Constant(100)),
        output_tokens: Lengths::Constant(8),
        ignore_eos: false,
        count_each_chunk: false,
        trace: None,
        shared_prefix: None,
        seed: 7,
        threads: 1,
        connections_max: 100,
        ca_file: None,
        key: None,
    }
}

pub(crate) fn measure(plan: &Plan) -> Run {
    run(plan, &Watch::default()).unwrap()
}

/// The one fault that every request met.
fn fault(plan: &Plan) -> Option<Fault> {
    let run = measure(plan);
    assert_eq!(run.samples.len() as u64, plan.bound.requests.unwrap());
    let first = run.samples[0].fault;
    assert!(
        run.samples.iter().all(|sample| sample.fault == first),
        "{:?}",
        run.samples
    );
    first
}

#[test]
fn streams_are_measured_and_every_stamp_is_in_order() {
    let server = Server::new(|_, socket| send(socket, &stream(&["a", "b", "c"], Some((5, 3)))));
    let run = measure(&plan(&server.url, 20));
    assert_eq!(run.samples.len(), 20);
    for (index, sample) in run.samples.iter().enumerate() {
        assert_eq!((sample.index, sample.fault), (index as u64, None));
        assert_eq!(sample.intended_us, index as u64 * 2000);
        let usage = sample.usage.unwrap();
        assert_eq!(
            (
                usage.prompt_tokens,
                usage.completion_tokens,
                usage.cached_tokens
            ),
            (5, 3, Some(1))
        );
        let chunks = run.chunks(sample);
        assert_eq!(chunks.len(), 3, "the role's chunk is no token");
        let order = [
            sample.intended_us,
            sample.started_us,
            sample.sent_us.unwrap(),
            sample.first_byte_us.unwrap(),
            chunks[0],
            chunks[2],
            sample.last_byte_us.unwrap(),
        ];
        assert!(order.is_sorted(), "{order:?}");
    }
}

#[test]
fn a_request_says_what_the_plan_says() {
    let server = Server::new(|_, socket| send(socket, &stream(&["a"], None)));
    let mut asked = plan(&server.url, 1);
    asked.model = "a \"b\"".to_owned();
    asked.key = Some("sk-x".to_owned());
    asked.ignore_eos = true;
    asked.count_each_chunk = true;
    measure(&asked);
    asked.endpoint = Endpoint::Completions;
    asked.stream = false;
    asked.key = None;
    measure(&asked);
    let seen = server.seen();
    let (head, body) = seen[0].split_once("\r\n\r\n").unwrap();
    assert!(
        head.starts_with("POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1:"),
        "{head}"
    );
    assert!(
        head.contains("\r\nauthorization: Bearer sk-x\r\n"),
        "{head}"
    );
    let body: serde_json::Value = serde_json::from_str(body).unwrap();
    assert_eq!(body["model"], "a \"b\"");
    assert_eq!(body["stream_options"]["include_usage"], true);
    assert_eq!(body["stream_options"]["continuous_usage_stats"], true);
    assert_eq!(
        (&body["max_tokens"], &body["ignore_eos"]),
        (&8.into(), &true.into())
    );
    assert_eq!(body["messages"][0]["content"].as_str().unwrap().len(), 100);
    let (head, body) = seen[1].split_once("\r\n\r\n").unwrap();
    assert!(
        head.starts_with("POST /v1/completions ") && !head.contains("authorization"),
        "{head}"
    );
    let body: serde_json::Value = serde_json::from_str(body).unwrap();
    assert_eq!(body["prompt"].as_str().unwrap().len(), 100);
    assert!(body["stream"].is_null());
}

#[test]
fn each_way_to_fail_has_its_name() {
    type Behaviour = fn(&mut std::net::TcpStream) -> bool;
    let cases: [(Behaviour, Fault); 9] = [
        (|_| false, Fault::Closed),
        (
            |socket| {
                send(
                    socket,
                    "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncontent-length: 500\r\n\r\ndata: {",
                );
                false
            },
            Fault::Truncated,
        ),
        (|socket| send(socket, "SMTP ready\r\n\r\n"), Fault::Http),
        (
            |socket| {
                send(
                    socket,
                    "HTTP/1.1 429 Too Many\r\nretry-after: 7\r\ncontent-length: 2\r\n\r\nno",
                )
            },
            Fault::Status(429),
        ),
        (
            |socket| send(socket, "HTTP/1.1 500 Oh\r\ncontent-length: 0\r\n\r\n"),
            Fault::Status(500),
        ),
        (
            |socket| send(socket, &chunked("application/json", "{}")),
            Fault::NotStream,
        ),
        (
            |socket| {
                send(
                    socket,
                    &chunked(
                        "text/event-stream",
                        "data: {\"error\":{\"message\":\"x\"}}\n\ndata: [DONE]\n\n",
                    ),
                )
            },
            Fault::Engine,
        ),
        (
            |socket| {
                send(
                    socket,
                    &chunked(
                        "text/event-stream",
                        "data: {\"choices\":[{\"text\":\"a\"}]}\n\n",
                    ),
                )
            },
            Fault::NoEnd,
        ),
        (
            |socket| {
                send(
                    socket,
                    "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
                )
            },
            Fault::Http,
        ),
    ];
    for (behaviour, expected) in cases {
        let server = Server::new(move |_, socket| behaviour(socket));
        assert_eq!(fault(&plan(&server.url, 4)), Some(expected));
    }
    let free = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    assert_eq!(
        fault(&plan(&format!("http://{free}"), 4)),
        Some(Fault::Connect)
    );
}

#[test]
fn a_reset_in_the_middle_is_a_cut_answer() {
    let server = Server::new(|_, socket| {
        send(
            socket,
            "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\ndata: x\n\n",
        );
        // What is not read makes the kernel answer with a reset.
        let option =
            rustix::net::sockopt::set_socket_linger(&*socket, Some(std::time::Duration::ZERO));
        option.is_err()
    });
    let found = fault(&plan(&server.url, 3));
    assert!(
        matches!(found, Some(Fault::Truncated | Fault::Closed | Fault::NoEnd)),
        "{found:?}"
    );
}

#[test]
fn a_refusal_keeps_its_retry_after_and_the_connection() {
    let server = Server::new(|_, socket| {
        send(
            socket,
            "HTTP/1.1 429 Too Many\r\nretry-after: 7\r\ncontent-length: 2\r\n\r\nno",
        )
    });
    let mut asked = plan(&server.url, 10);
    asked.connections_max = 1;
    let run = measure(&asked);
    assert!(
        run.samples
            .iter()
            .all(|sample| sample.retry_after_s == Some(7))
    );
    assert_eq!(run.connections, 1);
    assert_eq!(server.seen().len(), 10, "a refusal is not tried again");
}

#[test]
fn what_an_engine_says_of_a_fault_is_kept_once() {
    let server = Server::new(|number, socket| match number % 2 {
        0 => send(
            socket,
            "HTTP/1.1 400 Bad\r\ncontent-length: 8\r\n\r\ntoo long",
        ),
        _ => send(
            socket,
            &chunked(
                "text/event-stream",
                "data: {\"error\":\"died\"}\n\ndata: [DONE]\n\n",
            ),
        ),
    });
    let asked = plan(&server.url, 8);
    let report = Report::new(&asked, None, &measure(&asked));
    let said: Vec<(&str, &str)> = report
        .counts
        .said
        .iter()
        .map(|(kind, said)| (kind.as_str(), said.as_str()))
        .collect();
    assert_eq!(
        said,
        [
            ("engine_error", "{\"error\":\"died\"}"),
            ("status_400", "too long")
        ]
    );
}

#[test]
fn a_hang_is_given_up_and_the_rest_goes_on() {
    let server = Server::new(|number, socket| match number {
        0 => {
            std::thread::park_timeout(std::time::Duration::from_secs(60));
            false
        }
        _ => send(socket, &stream(&["a"], Some((1, 1)))),
    });
    let mut asked = plan(&server.url, 5);
    asked.timeout_us = 300_000;
    let run = measure(&asked);
    let faults: Vec<Option<Fault>> = run.samples.iter().map(|sample| sample.fault).collect();
    assert_eq!(
        faults
            .iter()
            .filter(|fault| **fault == Some(Fault::Timeout))
            .count(),
        1,
        "{faults:?}"
    );
    assert_eq!(
        faults.iter().filter(|fault| fault.is_none()).count(),
        4,
        "{faults:?}"
    );
}

#[test]
fn who_waits_for_a_connection_is_given_up_in_time_too() {
    let server = Server::new(|_, _| {
        std::thread::park_timeout(std::time::Duration::from_secs(60));
        false
    });
    let mut asked = plan(&server.url, 6);
    asked.timeout_us = 200_000;
    asked.connections_max = 1;
    let run = measure(&asked);
    assert!(
        run.samples
            .iter()
            .all(|sample| sample.fault == Some(Fault::Timeout))
    );
    // One more may have begun before the rest was given up.
    assert!(run.connections <= 2, "not one after the other");
}

#[test]
fn a_connection_that_was_closed_while_idle_costs_nothing() {
    // Each connection serves one request and is closed without a word about it.
    let server = Server::new(|_, socket| {
        send(socket, &stream(&["a"], Some((1, 1))));
        false
    });
    assert_eq!(fault(&plan(&server.url, 50)), None);
}

#[test]
fn more_requests_than_connections_wait_and_are_measured_from_their_instant() {
    let server = Server::new(|_, socket| {
        std::thread::park_timeout(std::time::Duration::from_millis(20));
        send(socket, &stream(&["a"], Some((1, 1))))
    });
    let mut asked = plan(&server.url, 12);
    asked.connections_max = 1;
    let run = measure(&asked);
    assert_eq!(run.connections, 1);
    let last = &run.samples[11];
    assert_eq!(last.intended_us, 22_000);
    assert!(
        last.started_us > 11 * 20_000,
        "the twelfth waits for eleven answers"
    );
    let report = Report::new(&asked, None, &run);
    assert!(!report.validity.valid);
    assert!(
        report.validity.reasons[0].contains("bottleneck"),
        "{:?}",
        report.validity.reasons
    );
    assert!(report.client.waited >= 5, "{}", report.client.waited);
    assert!(report.validity.reasons[1].contains("--connections-max"));
    assert!(
        report.latency_ms.e2e.max.unwrap() >= 200.0,
        "the wait counts"
    );
}

#[test]
fn threads_share_the_work_and_change_neither_instants_nor_prompts() {
    let server = Server::new(|_, socket| send(socket, &stream(&["a"], Some((1, 1)))));
    let mut asked = plan(&server.url, 30);
    asked.pace = Pace::Open {
        rate: 1000.0,
        arrivals: Arrivals::Poisson,
    };
    asked.prompt = PromptLength::Chars("uniform:10,500".parse().unwrap());
    let prompts = |seen: Vec<String>| -> Vec<String> {
        let mut bodies: Vec<String> = seen
            .iter()
            .map(|text| text.split_once("\r\n\r\n").unwrap().1.to_owned())
            .collect();
        bodies.sort();
        bodies
    };
    let one = measure(&asked);
    let first = prompts(server.seen());
    asked.threads = 3;
    let three = measure(&asked);
    let both = prompts(server.seen());
    let instants = |run: &Run| -> Vec<u64> {
        run.samples
            .iter()
            .map(|sample| sample.intended_us)
            .collect()
    };
    assert_eq!(instants(&one), instants(&three));
    let twice: Vec<String> = first
        .iter()
        .flat_map(|body| [body.clone(), body.clone()])
        .collect();
    assert_eq!(both, twice);
}

#[test]
fn tokens_that_are_counted_in_each_chunk_stand_beside_its_stamp() {
    let chunk = |counted: u32| {
        format!(
            "data: {{\"choices\":[{{\"delta\":{{\"content\":\"x\"}}}}],\"usage\":{{\"prompt_tokens\":4,\"completion_tokens\":{counted}}}}}\n\n"
        )
    };
    let body = [chunk(1), chunk(4), "data: [DONE]\n\n".to_owned()].concat();
    let answer = chunked("text/event-stream", &body);
    let server = Server::new(move |_, socket| send(socket, &answer));
    let run = measure(&plan(&server.url, 1));
    let sample = &run.samples[0];
    assert_eq!(run.chunk_tokens(sample), Some(&[1, 4][..]));
    assert_eq!(sample.usage.unwrap().completion_tokens, 4);
}

#[test]
fn a_duration_ends_the_sending_and_not_the_answers() {
    let server = Server::new(|_, socket| {
        std::thread::park_timeout(std::time::Duration::from_millis(50));
        send(socket, &stream(&["a"], Some((1, 1))))
    });
    let mut asked = plan(&server.url, 1);
    asked.bound = Bound {
        requests: None,
        duration_us: Some(20_000),
    };
    let run = measure(&asked);
    assert_eq!(run.samples.len(), 10, "each 2 ms, and none at 20");
    assert!(run.samples.iter().all(|sample| sample.fault.is_none()));
}

#[test]
fn a_closed_loop_keeps_its_number_and_thinks() {
    let server = Server::new(|_, socket| {
        std::thread::park_timeout(std::time::Duration::from_millis(10));
        send(socket, &stream(&["a"], Some((1, 1))))
    });
    let mut asked = plan(&server.url, 30);
    asked.threads = 2;
    asked.pace = Pace::Closed {
        concurrency: 3,
        think: "5ms".parse().unwrap(),
    };
    let run = measure(&asked);
    assert_eq!(run.samples.len(), 30);
    assert_eq!(run.connections, 3);
    let mut changes: Vec<(u64, i64)> = Vec::new();
    for sample in &run.samples {
        changes.push((sample.started_us, 1));
        changes.push((sample.last_byte_us.unwrap(), -1));
    }
    changes.sort_unstable();
    let most = changes.iter().scan(0, |at_once, (_, change)| {
        *at_once += change;
        Some(*at_once)
    });
    assert_eq!(most.max(), Some(3));
    // Whoever asks again has had an answer, and thought.
    let mut ends: Vec<u64> = run
        .samples
        .iter()
        .filter_map(|sample| sample.last_byte_us)
        .collect();
    ends.sort_unstable();
    for sample in run.samples.iter().filter(|sample| sample.intended_us > 0) {
        let before = ends
            .iter()
            .filter(|end| **end + 5000 <= sample.intended_us)
            .count();
        assert!(before > 0, "{sample:?}");
    }
    assert_eq!(
        run.samples
            .iter()
            .filter(|sample| sample.intended_us == 0)
            .count(),
        3
    );
}

#[test]
fn a_closed_loop_does_not_spin_against_an_engine_that_is_away() {
    let free = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let mut asked = plan(&format!("http://{free}"), 1_000_000);
    asked.bound.duration_us = Some(250_000);
    asked.pace = Pace::Closed {
        concurrency: 2,
        think: "0s".parse().unwrap(),
    };
    let run = measure(&asked);
    // Two at once, at 0, 100 and 200 ms; fewer on a machine that is busy.
    assert!(
        (2..=6).contains(&run.samples.len()),
        "{}",
        run.samples.len()
    );
}

#[test]
fn a_stop_keeps_what_was_measured() {
    let server = Server::new(|_, _| {
        std::thread::park_timeout(std::time::Duration::from_secs(60));
        false
    });
    let watch = Watch::default();
    watch.stop.store(true, Ordering::Relaxed);
    let run = run(&plan(&server.url, 5), &watch).unwrap();
    assert!(run.interrupted);
    assert!(
        run.samples
            .iter()
            .all(|sample| sample.fault == Some(Fault::Interrupted))
    );
}

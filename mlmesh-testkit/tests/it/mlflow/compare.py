"""Asks a tracking server much of what a client can ask, and writes what it answered.

Run against MLflow's own server and against a run's own tracking; the answers must be
the same. Writes `outputs/answers.json`; MLFLOW_TRACKING_URI says whom to ask.
"""

import json
import os
import pathlib
import re
import tempfile

import requests
from mlflow import MlflowClient
from mlflow.entities import Metric, Param, RunTag, ViewType
from mlflow.exceptions import MlflowException

client = MlflowClient()
uri = os.environ["MLFLOW_TRACKING_URI"]
session = requests.Session()
if token := os.environ.get("MLFLOW_TRACKING_TOKEN"):
    session.headers["Authorization"] = f"Bearer {token}"
answers = {}
names = {}


def named(kind, id):
    """Ids are made up by each server: they are told by when they were first seen."""
    names.setdefault(id, f"<{kind} {sum(name.startswith(f'<{kind} ') for name in names.values())}>")
    return id


def plain(value):
    text = json.dumps(value, sort_keys=True)
    for id, name in sorted(names.items(), key=lambda pair: -len(pair[0])):
        text = text.replace(id, name)
    return json.loads(text)


def seen(thing):
    """An answer as data; times of the server are only said to be there."""
    if isinstance(thing, (list, tuple)):
        return [seen(one) for one in thing]
    if thing is None or isinstance(thing, (str, int, float, bool, dict)):
        return thing
    kind = type(thing).__name__
    if kind == "Experiment":
        return {
            "id": thing.experiment_id, "name": thing.name, "stage": thing.lifecycle_stage,
            "tags": thing.tags, "artifacts": thing.artifact_location,
            "times": [bool(thing.creation_time), bool(thing.last_update_time)],
        }
    if kind == "Run":
        info = thing.info
        return {
            "id": info.run_id, "name": info.run_name, "experiment": info.experiment_id,
            "status": info.status, "stage": info.lifecycle_stage, "artifacts": info.artifact_uri,
            "start": info.start_time, "end": info.end_time, "user": info.user_id,
            "metrics": {key: repr(value) for key, value in thing.data.metrics.items()},
            "params": thing.data.params, "tags": thing.data.tags,
            "datasets": [
                [one.dataset.name, one.dataset.digest, [[tag.key, tag.value] for tag in one.tags]]
                for one in thing.inputs.dataset_inputs
            ],
        }
    if kind == "Metric":
        return [thing.key, repr(thing.value), thing.timestamp, thing.step]
    if kind == "FileInfo":
        return [thing.path, thing.is_dir, thing.file_size]
    if kind == "LoggedModel":
        return {
            "id": thing.model_id, "name": thing.name, "type": thing.model_type,
            "status": str(thing.status), "run": thing.source_run_id, "tags": thing.tags,
            "params": thing.params, "artifacts": thing.artifact_location,
            "experiment": thing.experiment_id,
            "metrics": [[m.key, m.value, m.step, m.run_id] for m in thing.metrics or []],
        }
    return str(thing)


def ask(name, call):
    try:
        answer = seen(result := call())
    except MlflowException as error:
        result, answer = None, {"refused": error.error_code, "says": str(error)}
    assert name not in answers, name
    answers[name] = plain(answer)
    return result


def post(name, path, body, method="POST"):
    """What the client itself would not send."""
    data = body if isinstance(body, (str, bytes)) else json.dumps(body)
    got = session.request(method, f"{uri}/api/2.0/mlflow/{path}", data=data,
                          headers={"Content-Type": "application/json"})
    try:
        answer = got.json()
    except ValueError:
        answer = got.text
    assert name not in answers, name
    answers[name] = plain([got.status_code, answer])


def experiments():
    first = ask("create experiment", lambda: client.create_experiment("one", tags={"a": "b"}))
    ask("create it twice", lambda: client.create_experiment("one"))
    second = client.create_experiment("two words")
    ask("get experiment", lambda: client.get_experiment(first))
    ask("get by name", lambda: client.get_experiment_by_name("two words"))
    ask("get what is not there", lambda: client.get_experiment("4711"))
    ask("get a name that is not there", lambda: client.get_experiment_by_name("three"))
    ask("tag it", lambda: client.set_experiment_tag(first, "k.e/y", "value"))
    ask("rename", lambda: client.rename_experiment(second, "second"))
    ask("rename to another's", lambda: client.rename_experiment(second, "one"))
    ask("search experiments", lambda: [e.name for e in client.search_experiments(order_by=["name"])])
    ask("search by name", lambda: client.search_experiments(filter_string="name LIKE 'sec%'"))
    ask("search by tag", lambda: client.search_experiments(filter_string="tags.a = 'b'"))
    ask("search without a tag",
        lambda: [e.name for e in client.search_experiments(filter_string="tags.a IS NULL", order_by=["name DESC"])])
    ask("search pages", lambda: [e.name for e in client.search_experiments(max_results=2, order_by=["name"])])
    ask("search nonsense", lambda: client.search_experiments(filter_string="nonsense = 'x'"))
    ask("delete experiment", lambda: client.delete_experiment(second))
    ask("get deleted", lambda: client.get_experiment(second))
    ask("search deleted", lambda: client.search_experiments(view_type=ViewType.DELETED_ONLY))
    ask("create run in deleted", lambda: client.create_run(second))
    ask("tag deleted", lambda: client.set_experiment_tag(second, "a", "b"))
    ask("restore", lambda: client.restore_experiment(second))
    ask("restore again", lambda: client.restore_experiment(second))
    return first


def one_run(experiment):
    run = client.create_run(experiment, start_time=1000, run_name="first", tags={"t": "u"})
    id = named("run", run.info.run_id)
    answers["create run"] = plain(seen(run))
    ask("get run", lambda: client.get_run(id))
    ask("get no run", lambda: client.get_run("0" * 32))
    ask("log metric", lambda: client.log_metric(id, "loss", 0.5, timestamp=5, step=1))
    ask("the same again", lambda: client.log_metric(id, "loss", 0.5, timestamp=5, step=1))
    ask("an earlier step", lambda: client.log_metric(id, "loss", 9.0, timestamp=6, step=0))
    ask("not a number", lambda: client.log_metric(id, "nan", float("nan"), timestamp=5, step=1))
    ask("infinite", lambda: client.log_metric(id, "inf", float("inf"), timestamp=5, step=1))
    ask("negative step", lambda: client.log_metric(id, "neg", 1.0, timestamp=5, step=-3))
    ask("bad key", lambda: client.log_metric(id, "a//b", 1.0))
    ask("bad letters", lambda: client.log_metric(id, "a\nb", 1.0))
    ask("long key", lambda: client.log_metric(id, "k" * 251, 1.0))
    ask("log param", lambda: client.log_param(id, "p", 3))
    ask("log it again", lambda: client.log_param(id, "p", 3))
    ask("change it", lambda: client.log_param(id, "p", 4))
    ask("long value", lambda: client.log_param(id, "long", "x" * 6001))
    ask("set tag", lambda: client.set_tag(id, "k", "v"))
    ask("change tag", lambda: client.set_tag(id, "k", "w"))
    ask("delete tag", lambda: client.delete_tag(id, "t"))
    ask("delete no tag", lambda: client.delete_tag(id, "t"))
    ask("rename run", lambda: client.update_run(id, name="renamed"))
    ask("rename by tag", lambda: client.set_tag(id, "mlflow.runName", "by tag"))
    ask("batch", lambda: client.log_batch(
        id, [Metric("b", value, 10 + value, value) for value in range(1000 - 2)],
        [Param("q", "1")], [RunTag("r", "2")]))
    ask("batch changes a param", lambda: client.log_batch(id, [Metric("c", 1, 1, 1)], [Param("q", "2")]))
    ask("batch twice a param", lambda: client.log_batch(id, [], [Param("z", "2"), Param("z", "3")]))
    ask("history", lambda: client.get_metric_history(id, "loss"))
    ask("history of none", lambda: client.get_metric_history(id, "none"))
    ask("history of the batch", lambda: len(client.get_metric_history(id, "b")))
    history_pages(id)
    ask("after all", lambda: client.get_run(id))
    ask("terminate", lambda: client.set_terminated(id, "FAILED", end_time=2000))
    ask("log to the ended", lambda: client.log_metric(id, "late", 1.0, timestamp=1, step=1))
    ask("terminated", lambda: client.get_run(id))
    return id


def history_pages(id):
    pages, token = [], ""
    while True:
        page = session.get(f"{uri}/api/2.0/mlflow/metrics/get-history", params={
            "run_id": id, "metric_key": "b", "max_results": 400, "page_token": token}).json()
        pages.append([len(page["metrics"]), page["metrics"][0]["step"], sorted(page["metrics"][0])])
        token = page.get("next_page_token", "")
        if not token:
            break
    answers["history in pages"] = pages


def bad_requests(id):
    post("no run", "runs/log-metric", {"key": "m", "value": 1, "timestamp": 1})
    post("no key", "runs/log-metric", {"run_id": id, "value": 1, "timestamp": 1})
    post("no value", "runs/log-metric", {"run_id": id, "key": "m", "timestamp": 1})
    post("no time", "runs/log-metric", {"run_id": id, "key": "m", "value": 1})
    post("text as value", "runs/log-metric", {"run_id": id, "key": "m", "value": "x", "timestamp": 1})
    post("negative time", "runs/log-metric", {"run_id": id, "key": "m", "value": 1, "timestamp": -1})
    post("list as key", "runs/log-metric", {"run_id": id, "key": ["m"], "value": 1, "timestamp": 1})
    post("too many", "runs/log-batch", {
        "run_id": id, "metrics": [{"key": "m", "value": 1, "timestamp": 1, "step": n} for n in range(1001)]})
    post("too many params", "runs/log-batch", {
        "run_id": id, "params": [{"key": f"m{n}", "value": "1"} for n in range(101)]})
    post("metrics no list", "runs/log-batch", {"run_id": id, "metrics": {"a": 1}})
    post("one bad of two", "runs/log-batch", {"run_id": id, "metrics": [
        {"key": "half", "value": 1, "timestamp": 1, "step": 1}, {"key": "a//b", "value": 1, "timestamp": 1}]})
    post("no experiment's name", "experiments/create", {})
    post("number as name", "experiments/create", {"name": 5})
    post("no such experiment", "runs/create", {"experiment_id": "99"})
    post("bad status", "runs/update", {"run_id": id, "status": "SLEEPING"})
    post("bad page token", f"metrics/get-history?run_id={id}&metric_key=b&page_token=%21&max_results=3", "", "GET")
    post("history without key", f"metrics/get-history?run_id={id}", "", "GET")
    post("search max", "runs/search", {"experiment_ids": ["0"], "max_results": 50001})
    post("search zero", "runs/search", {"experiment_ids": ["0"], "max_results": 0})
    post("search none", "runs/search", {"experiment_ids": []})
    ask("nothing of the bad", lambda: "half" in client.get_run(id).data.metrics)


def more_runs(experiment):
    """Searches over several."""
    runs = [client.create_run(experiment, start_time=2000 + n, run_name=f"r{n}") for n in range(5)]
    for n, run in enumerate(runs):
        id = named("run", run.info.run_id)
        client.log_batch(id, [Metric("acc", n / 10, 1, 1)], [Param("depth", str(n % 2))], [RunTag("part", f"P{n}")])
    client.log_metric(runs[0].info.run_id, "acc", float("nan"), timestamp=2, step=2)
    client.set_terminated(runs[1].info.run_id, end_time=5000)

    def search(name, filter="", order=None, **more):
        ask(name, lambda: [run.info.run_name for run in client.search_runs([experiment], filter, order_by=order, **more)])

    search("all runs")
    search("by metric", "metrics.acc > 0.15", ["metrics.acc DESC"])
    search("nan last", "", ["metrics.acc ASC"])
    search("by param", "params.depth = '1' AND metrics.acc <= 0.3", ["start_time ASC"])
    search("by tag", "tags.part ILIKE 'p_' and tags.part != 'P2'", ["tags.part"])
    search("like", "tags.part LIKE 'p%'")
    search("by name", "attributes.run_name = 'r3'")
    search("by alias", "run_name LIKE 'r%'", ["created DESC"])
    search("by status", "status = 'FINISHED'")
    search("by time", "attributes.start_time >= 2003")
    search("by end", "", ["end_time DESC", "start_time ASC"])
    search("null", "tags.part IS NULL")
    search("not null", "params.depth IS NOT NULL", ["run_name"])
    search("quoted", 'tags."mlflow.runName" = "r1"')
    search("backticks", "tags.`mlflow.runName` = 'r1'")
    search("in", f"attributes.run_id IN ('{runs[1].info.run_id}', '{runs[2].info.run_id}')", ["run_name"])
    search("or", "metrics.acc > 1 OR metrics.acc < 2")
    search("text for a number", "metrics.acc > 'x'")
    search("number for a text", "params.depth = 1")
    search("greater text", "params.depth > '1'")
    search("no attribute", "attributes.size = 'x'")
    search("no entity", "things.a = 'x'")
    search("broken", "metrics.acc >")
    search("no order", "", ["metrics.acc SIDEWAYS"])
    ask("pages", lambda: [
        run.info.run_name for run in client.search_runs([experiment], max_results=2, order_by=["run_name"])])
    token = client.search_runs([experiment], max_results=4, order_by=["run_name"]).token
    search("second page", "", ["run_name"], max_results=4, page_token=token)
    ask("delete run", lambda: client.delete_run(runs[4].info.run_id))
    ask("log to deleted", lambda: client.log_metric(runs[4].info.run_id, "acc", 1.0))
    ask("get deleted run", lambda: client.get_run(runs[4].info.run_id).info.lifecycle_stage)
    search("without deleted", "", ["run_name"])
    search("only deleted", "", None, run_view_type=ViewType.DELETED_ONLY)
    ask("restore run", lambda: client.restore_run(runs[4].info.run_id))
    search("all again", "", ["run_name"], run_view_type=ViewType.ALL)


def artifacts(id):
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        (folder / "a.txt").write_text("hello")
        (folder / "sub").mkdir()
        (folder / "sub/b b.bin").write_bytes(bytes(range(256)))
        ask("upload", lambda: client.log_artifact(id, folder / "a.txt"))
        ask("upload again", lambda: client.log_artifact(id, folder / "a.txt", "in/side"))
        ask("upload a folder", lambda: client.log_artifacts(id, folder, "all"))
        ask("text", lambda: client.log_text(id, "some text", "notes/t.txt"))
        ask("dict", lambda: client.log_dict(id, {"a": [1]}, "d.json"))
        ask("list", lambda: client.list_artifacts(id))
        ask("list below", lambda: client.list_artifacts(id, "all/sub"))
        ask("list nothing", lambda: client.list_artifacts(id, "nowhere"))
        ask("list a file", lambda: client.list_artifacts(id, "a.txt"))
        got = pathlib.Path(client.download_artifacts(id, "all", folder))
        answers["downloaded"] = sorted(str(p.relative_to(got)) for p in got.rglob("*"))
        assert (got / "sub/b b.bin").read_bytes() == bytes(range(256))
    base = f"{uri}/api/2.0/mlflow-artifacts/artifacts"
    root = client.get_run(id).info.artifact_uri.removeprefix("mlflow-artifacts:/").lstrip("/")
    for name, path in [("get none", f"{root}/none"), ("get up", f"{root}/%2e%2e/%2e%2e/x")]:
        answers[name] = session.get(f"{base}/{path}").status_code


def models(experiment, id):
    model = ask("create model", lambda: client.create_logged_model(
        experiment, name="m", source_run_id=id, model_type="kind", tags={"a": "b"}, params={"p": "1"}))
    named("model", model.model_id)
    answers["create model"] = plain(answers["create model"])
    ask("bad model name", lambda: client.create_logged_model(experiment, name="a/b"))
    ask("finalize", lambda: client.finalize_logged_model(model.model_id, "READY"))
    ask("tag model", lambda: client.set_logged_model_tags(model.model_id, {"c": "d"}))
    ask("untag model", lambda: client.delete_logged_model_tag(model.model_id, "a"))
    ask("untag none", lambda: client.delete_logged_model_tag(model.model_id, "none"))
    client.log_metric(id, "quality", 0.75, timestamp=3, step=2, model_id=model.model_id)
    ask("get model", lambda: client.get_logged_model(model.model_id))
    ask("get no model", lambda: client.get_logged_model("m-0"))
    ask("search models", lambda: [m.name for m in client.search_logged_models([experiment])])
    ask("search model", lambda: [m.name for m in client.search_logged_models(
        [experiment], filter_string="name = 'm' AND metrics.quality > 0.5")])
    ask("search no model", lambda: client.search_logged_models([experiment], filter_string="tags.c = 'x'"))
    ask("delete model", lambda: client.delete_logged_model(model.model_id))
    ask("get deleted model", lambda: client.get_logged_model(model.model_id))


experiment = experiments()
run = one_run(experiment)
bad_requests(run)
artifacts(run)
models(experiment, run)
more_runs(client.create_experiment("search"))
# What no entity says for itself: the answer's own text, where ids stand in it.
text = json.dumps(answers, sort_keys=True, indent=1)
pathlib.Path("outputs").mkdir(exist_ok=True)
pathlib.Path("outputs/answers.json").write_text(re.sub(r"[0-9a-f]{32}", "<id>", text))

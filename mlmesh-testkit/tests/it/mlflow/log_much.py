"""Logs points over one connection, alone and in batches, through the deaths of the
daemon: for each it says when it is due, and goes on logging until it is over."""

import http.client
import json
import os
import pathlib
import urllib.parse

w, calls, deaths = pathlib.Path(os.environ["W"]), int(os.environ["CALLS"]), int(os.environ["DEATHS"])
run = os.environ["MLFLOW_RUN_ID"]
connection = http.client.HTTPConnection(urllib.parse.urlsplit(os.environ["MLFLOW_TRACKING_URI"]).netloc)
headers = {"Content-Type": "application/json"}
if token := os.environ.get("MLFLOW_TRACKING_TOKEN"):
    headers["Authorization"] = f"Bearer {token}"
acknowledged = {"one": 0, "many": 0}


def post(path, body):
    connection.request("POST", f"/api/2.0/mlflow/runs/{path}", json.dumps(body), headers)
    answer = connection.getresponse()
    text = answer.read()
    assert answer.status == 200, (answer.status, text)


def call(number):
    if number % 10:
        step = acknowledged["one"]
        post("log-metric", {"run_id": run, "key": "one", "value": step, "timestamp": step, "step": step})
        acknowledged["one"] += 1
        return
    steps = range(acknowledged["many"], acknowledged["many"] + 20)
    post("log-batch", {"run_id": run, "metrics": [
        {"key": "many", "value": step, "timestamp": step, "step": step} for step in steps]})
    acknowledged["many"] += len(steps)


number = 0
for death in range(deaths):
    (w / f"due-{death}").write_text("x\n")
    until = calls * (death + 1) // deaths
    while number < until or not (w / f"over-{death}").exists():
        call(number)
        number += 1
(w / "acknowledged.part").write_text(json.dumps(acknowledged) + "\n")
(w / "acknowledged.part").rename(w / "acknowledged")

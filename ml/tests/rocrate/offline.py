"""offline.py CRATE: whether rocrate-validator accepts an unpacked export, without a network.

The validator reads JSON-LD contexts through an HTTP cache. This fills one from the files
beside the script and then runs the validator with it; any other address is an error.
"""
import json
import pathlib
import subprocess
import sys
import tempfile

import requests
import requests_cache

HERE = pathlib.Path(__file__).parent
RUN_TERMS = "https://w3id.org/ro/terms/workflow-run"
NAMES = [
    "ParameterConnection", "ContainerImage", "DockerImage", "SIFImage", "connection",
    "sourceParameter", "targetParameter", "md5", "sha1", "sha256", "sha512", "environment",
    "registry", "tag", "containerImage", "resourceUsage",
]
DOCUMENTS = {
    "https://w3id.org/ro/crate/1.1/context": (HERE / "ro-crate-1.1.jsonld").read_bytes(),
    f"{RUN_TERMS}/context": json.dumps({"@context": {name: f"{RUN_TERMS}#{name}" for name in NAMES}}).encode(),
}
ACCEPTS = [None, "application/ld+json, application/json"]


class FromMemory(requests.adapters.HTTPAdapter):
    def send(self, request, *_args, **_options):
        import io
        import urllib3

        body = DOCUMENTS[request.url]
        headers = {"Content-Type": "application/ld+json"}
        raw = urllib3.HTTPResponse(io.BytesIO(body), headers=headers, status=200, preload_content=False)
        return self.build_response(request, raw)


with tempfile.TemporaryDirectory() as folder:
    cache = str(pathlib.Path(folder) / "contexts")
    with requests_cache.CachedSession(cache, backend="sqlite", expire_after=-1) as session:
        session.mount("https://", FromMemory())
        for address in DOCUMENTS:
            for accept in ACCEPTS:
                session.get(address, headers={"Accept": accept} if accept else {}).raise_for_status()
    validator = pathlib.Path(sys.executable).with_name("rocrate-validator")
    arguments = ["-y", "--disable-color", "validate", "--offline", "--cache-path", cache, "--no-paging"]
    profile = ["-p", "process-run-crate-0.5"]
    sys.exit(subprocess.run([validator, *arguments, *profile, sys.argv[1]]).returncode)

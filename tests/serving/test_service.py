"""The search service on the loopback: its answers, changes and states."""

import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import numpy as np
import pytest
from coarse_jpegs import draw
from jsonschema import Draft202012Validator

from cmfah_hf.errors import HashIndexError
from cmfah_hf.retrieval import HashIndex, Term
from cmfah_hf.retrieval.folders import FolderRequest, remove_items
from cmfah_hf.serving import ServedRetriever, ServiceLimits, served
from serving.servers import running


def rows(results):
    return [[{**hit, "path": hit.get("path")} for hit in own.hits()] for own in results]


def test_answers_equal_those_in_the_process(server, scenes):
    retriever = server.served.retriever
    cases = [
        ({"text": "boat sun", "k": 3}, [], {"text": "boat sun", "k": 3}),
        ({"text": ["boat", "sun moon"]}, [], {"text": ["boat", "sun moon"]}),
        ({"k": 2, "metric": "hamming"}, scenes[2:3], {"image": scenes[2], "k": 2, "metric": "hamming"}),
        ({"text": "boat", "image_weight": 0.8}, scenes[:1], {"text": "boat", "image": scenes[0], "image_weight": 0.8}),
        ({"text": "sun", "where": ["year=2022"]}, [], {"text": "sun", "where": {"year": 2022}}),
        ({"text": "sun", "exact": False}, [], {"text": "sun", "exact": False}),
        (
            {"terms": [{"text": "sun"}, {"image": 1, "weight": 0.5}, {"image": 0, "weight": -0.2}]},
            scenes[3:5],
            {"terms": [Term("sun"), Term(image=scenes[4], weight=0.5), Term(image=scenes[3], weight=-0.2)]},
        ),
    ]
    for asked, images, local in cases:
        reply = server.search(images, paths=True, **asked)
        expected = retriever.search(**{"k": 10, **local})
        assert [[{**hit, "path": hit.get("path")} for hit in own] for own in reply["answers"]] == rows(expected), asked
        assert (reply["target"], reply["columns"]) == ("images", ["year"])
    assert server.search(text="boat qqqq")["ignored_words"] == ["qqqq"]
    assert all("path" not in hit for hit in server.search(text="boat")["answers"][0])


def test_items_are_added_replaced_and_removed(server, scenes, tmp_path):
    retriever, post = server.served.retriever, server.post
    added = post("/add", {"ids": ["a", "b"], "metadata": {"year": [1, 2]}}, scenes[:2])
    assert added.json() == {"changed": 2, "items": 8}
    assert server.search(scenes[:1], k=2, where=["year=1"])["answers"][0][0]["id"] == "a"
    code = retriever.images.codes[6]
    assert post("/add", {"ids": ["a"], "replace": True, "metadata": {"year": [3]}}, scenes[5:6]).json()["items"] == 8
    assert (retriever.images.codes[-1] != code).any()
    assert post("/remove", {"ids": ["a", "0.png"]}).json() == {"changed": 2, "items": 6}
    assert server.http.get("/info").json()["indexes"]["images"]["is_saved"] is False
    assert post("/add", {"ids": [7, 8], "texts": ["boat", "sun"]}).json() == {"changed": 2, "items": 2}
    assert server.search(text="boat", target="texts", k=1)["answers"][0][0]["id"] == 7
    for path, asked, images in [
        ("/add", {"ids": ["new", "b"]}, scenes[:2]),  # the second is held
        ("/add", {"ids": ["new", "new"]}, scenes[:2]),
        ("/add", {"ids": ["new", "other"]}, [scenes[0], scenes[1][:400]]),  # cut short
        ("/add", {"ids": ["new"]}, scenes[:2]),
        ("/add", {"ids": ["new"], "metadata": {"year": [1, 2]}}, scenes[:1]),
        ("/add", {"ids": ["new", 3]}, scenes[:2]),
        ("/add", {"ids": ["new"]}, []),
        ("/add", {"ids": ["new"], "texts": ["boat"]}, scenes[:1]),
        ("/add", {"ids": [9, 8], "texts": ["boat", "sun"]}, []),
        ("/remove", {"ids": ["b", "unknown"]}, []),
        ("/remove", {"ids": ["b", "b"]}, []),
        ("/remove", {"ids": []}, []),
    ]:
        answer = post(path, asked, images)
        assert answer.status_code == 422, (asked, answer.text)
        assert answer.json()["detail"].isprintable()
    assert (len(retriever.images), len(retriever.texts)) == (6, 2)
    server.served.save()
    assert HashIndex.load(tmp_path / "images.index").ids.tolist() == [*(f"{n}.png" for n in range(1, 6)), "b"]
    assert HashIndex.load(tmp_path / "texts.index").ids.tolist() == [7, 8]


def test_changes_are_saved_regularly_and_at_the_end(retriever, scenes, tmp_path):
    path = tmp_path / "new.index"
    with running(ServedRetriever(retriever, {"images": path}), limits=ServiceLimits(save_seconds=0.05)) as own:
        own.post("/add", {"ids": ["a"]}, scenes[:1])
        end = time.monotonic() + 20
        while not path.exists() or not own.http.get("/info").json()["indexes"]["images"]["is_saved"]:
            assert time.monotonic() < end
            time.sleep(0.02)
        assert len(HashIndex.load(path)) == 1
    with running(ServedRetriever(retriever, {"images": path}), limits=ServiceLimits(save_seconds=1000)) as own:
        assert own.search(text="boat")["answers"][0][0]["id"] == "a"
        own.post("/remove", {"ids": ["a"]})
        assert len(HashIndex.load(path)) == 1
    assert len(HashIndex.load(path)) == 0


def test_only_named_index_files_change_and_by_one_server(retriever, scenes, tmp_path, monkeypatch):
    monkeypatch.setattr(served, "_LOCK_S", 0.05)
    path = tmp_path / "new.index"
    with running(ServedRetriever(retriever, {"images": path})) as own:
        answer = own.post("/add", {"ids": ["a"], "texts": ["boat"]})
        assert "start it with --texts FILE" in answer.json()["detail"]
        other = ServedRetriever(retriever, {"images": path})
        with pytest.raises(HashIndexError, match=r"is being written for 0\.05 seconds by process"), other:
            pass
        start = time.monotonic()
        with pytest.raises(HashIndexError, match=r"new\.index is being written by process \d+ on .*POST /sync"):
            remove_items(path, ["a"])
        assert time.monotonic() - start < 5  # a server does not end by itself
    with running(ServedRetriever(retriever)) as own:
        for path, asked in [("/add", {"ids": ["a"]}), ("/remove", {"ids": ["a"]}), ("/sync", {})]:
            answer = own.post(path, asked, scenes[:1] if path == "/add" else [])
            assert "must not change on this server" in answer.json()["detail"]


def test_the_index_follows_its_folders(retriever, photos, scenes, tmp_path):
    path = tmp_path / "photos.index"
    with running(ServedRetriever(retriever, {"images": path}, [FolderRequest(photos)])) as own:
        assert own.http.get("/sync").json() == {"state": "never"}
        done = own.post("/sync", {}).json()
        assert (done["state"], done["changes"]["added"]) == ("done", 5)
        assert own.post("/add", {"ids": ["upload.png"]}, scenes[:1]).json()["items"] == 6
        answer = own.post("/add", {"ids": ["0.jpg"], "replace": True}, scenes[:1])
        assert "'0.jpg' is an image of the folder photos" in answer.json()["detail"]
        assert own.post("/remove", {"ids": ["1.jpg"]}).json()["changed"] == 1
        (photos / "2.jpg").unlink()
        (photos / "3.jpg").rename(photos / "moved.jpg")
        draw(photos / "new.jpg", 77)
        planned = own.post("/sync", {"dry_run": True}).json()["changes"]
        assert planned["steps"] == {
            "added": ["new.jpg"], "changed": [], "renamed": [["3.jpg", "moved.jpg"]], "removed": ["2.jpg"],
        }  # fmt: skip
        done = own.post("/sync", {}).json()
        counted = {"added": 1, "renamed": 1, "removed": 1, "unchanged": 2, "left_out": 1}
        assert counted.items() <= done["changes"].items()
        assert own.http.get("/sync").json() == done
        assert sorted(retriever.images.ids) == ["0.jpg", "4.jpg", "moved.jpg", "new.jpg", "upload.png"]
        for field in ("folders", "images", "path", "index"):
            assert own.post("/sync", {field: "/etc"}).status_code == 422
        photos.rename(tmp_path / "gone")
        failed = own.post("/sync", {})
        assert (failed.status_code, failed.json()["state"]) == (422, "failed")
        assert "is gone" in failed.json()["detail"]
    assert len(HashIndex.load(path)) == 5


def test_searches_go_on_during_an_update_and_changes_have_to_wait(retriever, photos, scenes, tmp_path, monkeypatch):
    path, begun, go_on = tmp_path / "photos.index", threading.Event(), threading.Event()
    original = type(retriever).encode_pixels

    def slow(self, *arguments):
        if self is not retriever:
            begun.set()
            assert go_on.wait(30)
        return original(self, *arguments)

    served = ServedRetriever(retriever, {"images": path}, [FolderRequest(photos)], batch_size=2)
    with running(served) as own:
        own.post("/add", {"ids": ["upload.png"]}, scenes[:1])
        monkeypatch.setattr(type(retriever), "encode_pixels", slow)
        answer = own.post("/sync", {"wait": 0})
        assert (answer.status_code, answer.json()["state"]) == (202, "running")
        assert begun.wait(20)
        assert [hit["id"] for hit in own.search(text="boat")["answers"][0]] == ["upload.png"]
        refused = own.post("/remove", {"ids": ["upload.png"]})
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
        assert "are being updated" in refused.json()["detail"]
        assert own.post("/sync", {}).status_code == 422
        # The batch is done only when the server has begun to stop.
        threading.Thread(target=lambda: served._stopping.wait(30) and go_on.set(), daemon=True).start()
    # The server stopped meanwhile; what was encoded is there.
    assert set(HashIndex.load(path).ids) == {"upload.png", "0.jpg", "1.jpg"}


def test_many_search_while_others_change(server, scenes):
    """Every answer is that of the index before or after a change, and no request fails."""
    retriever, stop = server.served.retriever, threading.Event()
    fixed = {f"{n}.png" for n in range(6)}

    def search(seed: int) -> int:
        count = 0
        with httpx.Client(base_url=server.url, timeout=60) as http:
            while not stop.is_set():
                text = ("boat", "sun moon", "tree house qqq")[(seed + count) % 3]
                found = http.post("/search", json={"text": text, "k": 50}).json()["answers"][0]
                ids = {hit["id"] for hit in found}
                assert fixed <= ids
                assert len(ids - fixed) in (0, 2)  # a change adds or removes two
                scores = [hit["score"] for hit in found]
                assert scores == sorted(scores, reverse=True)
                count += 1
        return count

    with ThreadPoolExecutor(4) as pool:
        searches = [pool.submit(search, seed) for seed in range(4)]
        for number in range(12):
            ids = [f"new-{number}", f"other-{number}"]
            asked = {"ids": ids, "metadata": {"year": [1, 2]}}
            assert server.post("/add", asked, scenes[:2]).status_code == 200
            assert server.post("/remove", {"ids": ids}).status_code == 200
        stop.set()
        assert all(each.result() > 2 for each in searches)
    assert set(retriever.images.ids) == fixed


def test_openapi_is_valid_and_describes_the_replies(server, scenes):
    from openapi_spec_validator import validate

    document = server.http.get("/openapi.json").json()
    validate(document)
    posts = {path for path, own in document["paths"].items() if "post" in own}
    assert posts == {"/search", "/add", "/remove", "/sync"}

    def check(path: str, answer: httpx.Response) -> None:
        method = answer.request.method.lower()
        described = document["paths"][path][method]["responses"][str(answer.status_code)]
        schema = described["content"]["application/json"]["schema"]
        Draft202012Validator({**schema, "components": document["components"]}).validate(answer.json())

    check("/search", server.post("/search", {"text": "boat"}))
    check("/search", server.post("/search", {"k": 3}, scenes[:1]))
    check("/search", server.post("/search", {}))
    check("/add", server.post("/add", {"ids": [1], "texts": ["boat"]}))
    check("/remove", server.post("/remove", {"ids": ["0.png"]}))
    check("/sync", server.post("/sync", {}))
    for path in ("/health", "/info", "/sync"):
        check(path, server.http.get(path))
    terms = document["components"]["schemas"]["WeightedTerm"]["properties"]
    assert set(terms) == {"text", "image", "weight"}


def test_metrics_count_requests_and_items(server, scenes):
    from prometheus_client.parser import text_string_to_metric_families

    server.search(text="boat")
    server.post("/search", {"k": -1})
    server.http.get("/nothing/here")
    server.post("/add", {"ids": ["a"], "metadata": {"year": [1]}}, scenes[:1])
    families = text_string_to_metric_families(server.http.get("/metrics").text)
    samples = {(own.name, *own.labels.values()): own.value for family in families for own in family.samples}
    assert samples["cmfah_requests_total", "/search", "200"] == 1
    assert samples["cmfah_requests_total", "/search", "422"] == 1
    assert samples["cmfah_requests_total", "other", "404"] == 1
    assert samples["cmfah_request_seconds_count", "/search"] == 2
    assert (samples["cmfah_items", "images"], samples["cmfah_unsaved", "images"]) == (7, 1)


def test_metrics_need_their_library(retriever, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "prometheus_client", None)
    with running(ServedRetriever(retriever)) as own:
        answer = own.http.get("/metrics")
    assert (answer.status_code, "cmfah-hf[serve]" in answer.json()["detail"]) == (501, True)


def test_values_that_json_lacks(server):
    index = server.served.retriever.images
    metadata = {"year": [None], "score": [float("nan")], "taken": [np.datetime64("2024-05-01T10:00:00")]}
    server.served.retriever.images = fresh = HashIndex(index.bits, index.model)
    fresh.add(index.codes[:1], ["\udcff.png"], metadata)
    (hit,) = json.loads(server.post("/search", {"text": "boat"}).content)["answers"][0]
    assert (hit["id"], hit["metadata"]["score"]) == ("\udcff.png", None)
    assert hit["metadata"]["taken"].startswith("2024-05-01")

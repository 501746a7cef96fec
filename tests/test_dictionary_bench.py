"""Tests of what features mean, on networks and dictionaries whose right answer is known."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from toys import tokenizer
from transformers import LlamaConfig, LlamaForCausalLM

from crosspatch.dictionaries.bench import (
    TESTS,
    Entities,
    Texts,
    absorption,
    own_entities,
    own_texts,
    own_words,
    ravel,
    read_ravel,
    read_texts,
    run_tests,
    scr,
    sparse_probing,
    tpp,
)
from crosspatch.dictionaries.bench.interchange import ask, log_probabilities, pairs_of, patched_values, said_after
from crosspatch.dictionaries.bench.probes import fit, right
from crosspatch.dictionaries.bench.texts import pooled
from crosspatch.dictionaries.dictionary import Dictionary
from crosspatch.errors import DictionaryError
from crosspatch.model import Model, load

RAVEL = Path(__file__).parents[2] / "shared" / "data" / "ravel"

# -- a network whose activation at a token is a known sum of directions ------------------------------------------------


def network(embeddings: Mapping[str, Tensor]) -> Model:
    """Tokens are the given vectors, and nothing is added to them."""
    words = list(embeddings)
    d = len(next(iter(embeddings.values())))
    config = LlamaConfig(
        vocab_size=len(words), hidden_size=d, intermediate_size=4, num_hidden_layers=2, num_attention_heads=1,
        num_key_value_heads=1, head_dim=d + d % 2, hidden_act="relu", mlp_bias=True, tie_word_embeddings=False,
        max_position_embeddings=64,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        model.model.rotary_emb.inv_freq.zero_()
        model.model.norm = nn.Identity()
        for layer in model.model.layers:
            layer.input_layernorm = layer.post_attention_layernorm = nn.Identity()
        model.model.embed_tokens.weight.copy_(torch.stack([embeddings[word] for word in words]))
    return load(model, tokenizer(words))


def one_each(place: str, d: int) -> Dictionary:
    """The perfect dictionary: a feature for every dimension."""
    eye = torch.eye(d)
    return Dictionary(eye, torch.zeros(d), eye, torch.zeros(d), torch.zeros(d), place, place)


def random_dictionary(place: str, d: int, width: int = 64, seed: int = 0) -> Dictionary:
    g = torch.Generator().manual_seed(seed)
    rows = torch.nn.functional.normalize(torch.randn(width, d, generator=g), dim=1)
    return Dictionary(rows, torch.zeros(width), rows, torch.zeros(d), torch.zeros(width), place, place)


CUES = ("p0", "p1", "p2", "p3", "male", "female")
D = len(CUES) + 10


def cue_model(seed: int = 0) -> tuple[Model, Tensor]:
    """Words of four professions and two genders, each a direction of its own, and words that say nothing.

    Returns:
        the model, and the six directions.
    """
    g = torch.Generator().manual_seed(seed)
    rotation = torch.linalg.qr(torch.randn(D, D, generator=g))[0]
    words = {"start": torch.zeros(D)} | {cue: rotation[i] for i, cue in enumerate(CUES)}
    for i in range(20):
        words[f"w{i}"] = 0.05 * torch.randn(D - len(CUES), generator=g) @ rotation[len(CUES) :]
    return network(words), rotation


def cue_texts(per_cell: int = 16, seed: int = 0) -> Texts:
    """Every combination of profession and gender. Gender is said twice, so that a biased probe listens to it."""
    rng = np.random.default_rng(seed)
    rows = [
        (f"start p{p} {gender} {gender} " + " ".join(f"w{i}" for i in rng.permutation(20)[:4]), f"p{p}", gender)
        for p in range(4)
        for gender in ("female", "male")
        for _ in range(per_cell)
    ]
    texts, professions, genders = zip(*rows, strict=True)
    return Texts("cues", texts, {"profession": professions, "gender": genders})


def planted(place: str = "r1") -> tuple[Model, Dictionary]:
    """The network, and a dictionary of its true directions."""
    model, rotation = cue_model()
    return model, replace(one_each(place, D), encoder=rotation.clone(), decoder=rotation.clone())


# -- probes ------------------------------------------------------------------------------------------------------------


def test_a_probe_weighs_both_classes_alike() -> None:
    """With nothing to see, the rare class is not given up; the mean of what is right is the balanced accuracy."""
    rng = np.random.default_rng(0)
    yes = np.arange(200) < 20
    values = rng.normal(size=(200, 3))
    found = right(fit(np.zeros((200, 1)), yes), np.zeros((200, 1)), yes)
    assert found.mean() == pytest.approx(0.5)
    values[:, 1] += 20 * yes
    values[:, 2] = 7.0  # a constant column does no harm
    probe = fit(1e3 * values, yes, per_column=True)
    assert right(probe, 1e3 * values, yes).mean() == pytest.approx(1)
    assert abs(probe.weight[0]) < 0.1 * abs(probe.weight[1])
    said = probe.says(1e3 * values)
    flipped = right(probe, 1e3 * values, ~yes)
    assert flipped.mean() == pytest.approx(0.5 * ((said == ~yes)[yes].mean() + (said == ~yes)[~yes].mean()))
    rotation = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    turned = fit(values @ rotation, yes)  # the direction is that of the values, whatever the axes
    np.testing.assert_allclose(rotation @ turned.weight, fit(values, yes).weight, atol=1e-3)
    with pytest.raises(DictionaryError, match="both classes"):
        fit(values, np.ones(200, dtype=bool))


def test_halves_hold_every_combination_and_no_text_twice() -> None:
    texts = cue_texts()
    twice = Texts("twice", texts.texts * 2, {name: labels * 2 for name, labels in texts.labels.items()})
    train, test = twice.split(seed=3)
    assert sorted([*train, *test]) == list(range(len(twice)))
    assert not {twice.texts[i] for i in train} & {twice.texts[i] for i in test}
    cells = [tuple(labels[i] for labels in twice.labels.values()) for i in train]
    assert {cells.count(cell) for cell in set(cells)} == {16}
    assert not np.array_equal(train, twice.split(seed=4)[0])


def test_pooled_features_taken_off_are_ablation_at_every_token() -> None:
    model, dictionary = planted()
    texts = cue_texts(4)
    scaled = replace(dictionary, decoder=dictionary.decoder * 3, encoder=dictionary.encoder / 3)
    found = pooled(model, scaled, texts, tokens_per_pass=30)
    from crosspatch.dictionaries.places import read_place
    from crosspatch.model import record

    ids = model.tokenizer(texts.texts[5])["input_ids"]
    x = read_place(record(model, [ids]), ["r1"])[1:]
    f = scaled.encode(x)
    np.testing.assert_allclose(found.reads[5], x.mean(0).numpy(), atol=1e-6)
    f[:, 4] = 0
    kept = scaled.decode(f) + scaled.error(x)
    np.testing.assert_allclose(
        found.writes[5] - found.features[5, 4] * found.decoder[4], kept.mean(0).numpy(), atol=1e-6
    )
    np.testing.assert_allclose(np.linalg.norm(found.decoder, axis=1), 1, rtol=1e-6)
    last = pooled(model, scaled, replace(texts, pool="last"))
    np.testing.assert_allclose(last.reads[5], x[-1].numpy(), atol=1e-6)


# -- sparse probing, SCR, TPP ------------------------------------------------------------------------------------------


def test_sparse_probing_finds_a_planted_feature_and_nothing_in_shuffled_labels() -> None:
    model, dictionary = planted()
    found = sparse_probing(model, dictionary, [cue_texts()], k=(1, 5))
    for what in ("cues/profession", "cues/gender", "mean over attributes"):
        assert found.value(what, "latents", 1).value == 1
        assert found.value(what, "dense").value == 1
        shuffled = found.value(what, "shuffled", 5)
        assert shuffled.low - 0.05 < 0.5 < shuffled.high + 0.05
    # directions are rotated, so that one dimension of the activation does not tell; silent neurons tell nothing
    assert found.value("cues/profession", "dimensions", 1).value < 0.95
    assert found.value("cues/profession", "neurons", 5).value == pytest.approx(0.5)
    chosen = found.details["latents"]["cues/profession"]
    assert [chosen[f"p{i}"][0] for i in range(4)] == [0, 1, 2, 3]
    assert found.value("cues/profession", "latents", 1).high == 1
    blind = replace(dictionary, threshold=torch.full((D,), 1e6))
    assert sparse_probing(model, blind, [cue_texts()], k=(5,)).value("cues/gender", "latents", 5).value == 0.5


def test_scr_is_1_where_features_are_the_cues_and_0_for_random_ones() -> None:
    model, dictionary = planted()
    texts = cue_texts()
    found = scr(model, dictionary, texts, n=(1, 2, 5))
    assert found.value("all pairs", "latents", 2).value == pytest.approx(1, abs=0.05)
    assert abs(found.value("all pairs", "random latents", 1).value) < 0.25
    for pair in ("p0 or p1", "p2 or p3"):
        told = found.details[pair]
        assert told["removed"] == "gender" and sorted(told["latents"][:2]) == [4, 5]
        assert told["base"] < 0.9 < told["oracle"]
        assert told["base"] <= told["base of the other direction"] + 0.1
    lost = random_dictionary("r1", D)
    assert scr(model, lost, texts, n=(2,)).value("all pairs", "latents", 2).value < 0.5
    # everything ablated: nothing is left to tell by
    everything = scr(model, dictionary, texts, n=(2,)).value("all pairs", "all latents")
    assert everything.value < 0.2


def test_scr_is_not_defined_where_there_is_nothing_to_recover() -> None:
    """Gender that no token says: the biased probe is right already."""
    model, dictionary = planted()
    texts = cue_texts()
    silent = replace(texts, texts=tuple(t.replace("female", "w0").replace("male", "w0") for t in texts.texts))
    found = scr(model, dictionary, silent, n=(2,), pairs=[("p0", "p1")])
    # here the direction with the lower base accuracy is that of gender, whose oracle sees nothing either
    assert math.isnan(found.value("p0 or p1", "latents", 2).value)
    assert "not defined" in found.notes[0] and "not defined" in found.table()
    assert json.loads(json.dumps(found.plain(), allow_nan=False))["rows"][0]["value"] is None


def test_tpp_is_high_where_features_are_the_labels_and_0_for_random_latents() -> None:
    model, dictionary = planted()
    found = tpp(model, dictionary, cue_texts(), n=(1, 5))
    assert found.value("accuracy of the probes", "dense").value == pytest.approx(1)
    best = found.value("all labels", "latents", 1).value
    assert best > 0.3
    assert abs(found.value("all labels", "random latents", 1).value) < 0.1
    assert [found.details["latents"][f"p{i}"][0] for i in range(4)] == [0, 1, 2, 3]
    # one latent that holds all professions hurts all probes, not the intended one
    mixed = dictionary.decoder.clone()
    encoder = dictionary.encoder.clone()
    mixed[:4] = encoder[:4] = dictionary.decoder[:4].mean(0)
    mixed[1:4] = encoder[1:4] = 0
    one = replace(dictionary, decoder=mixed, encoder=encoder)
    assert tpp(model, one, cue_texts(), n=(1,)).value("all labels", "latents", 1).value < 0.5 * best
    with pytest.raises(DictionaryError, match="2 labels"):
        tpp(model, dictionary, cue_texts(), attribute="gender")


# -- absorption --------------------------------------------------------------------------------------------------------

LETTERS, PER_LETTER = "abc", 24


def spelling(absorbed: Sequence[str]) -> tuple[Model, Dictionary, list[str]]:
    """Words with a direction for their letter and one of their own. At the absorbed ones the letter's feature is silent
    and the word's own feature writes both."""
    words = [f"{letter}{i}" for letter in LETTERS for i in range(PER_LETTER)]
    d = len(LETTERS) + len(words)
    eye = torch.eye(d)
    embeddings = {"start": torch.zeros(d)}
    for i, word in enumerate(words):
        embeddings[word] = eye[LETTERS.index(word[0])] + eye[len(LETTERS) + i]
    encoder, decoder = eye.clone(), eye.clone()
    for word in absorbed:
        own, letter = len(LETTERS) + words.index(word), LETTERS.index(word[0])
        encoder[letter, own] = -1
        decoder[own] = eye[letter] + eye[own]
    zeros = torch.zeros(d)
    return network(embeddings), Dictionary(encoder, zeros, decoder, zeros, zeros, ("r1",), ("r1",)), words


@pytest.mark.parametrize("every", [0, 4])
def test_absorbed_letters_are_found(every: int) -> None:
    words = [f"{letter}{i}" for letter in LETTERS for i in range(PER_LETTER)]
    taken = words[::every] if every else []
    model, dictionary, words = spelling(taken)
    found = absorption(model, dictionary, words, frame="start %s")
    listed = [word for about in found.details["letters"].values() for word in about["absorbed"]]
    listed = [word.removeprefix("start ") for word in listed]
    assert set(listed) <= set(taken)
    rate = found.value("all letters", "absorbed").value
    assert rate == pytest.approx(len(listed) / (len(words) / 2), abs=1e-9)
    assert found.value("all letters", "missed").value >= rate
    assert (rate > 0.1) == bool(every)
    for letter, about in found.details["letters"].items():
        assert about["main latents"][0] == LETTERS.index(letter) and about["probe"] > 0.95
    # where no other feature has the letter, a silent feature is missed and not absorbed
    plain = replace(dictionary, decoder=torch.eye(dictionary.width))
    other = absorption(model, plain, words, frame="start %s")
    assert other.value("all letters", "absorbed").value == 0
    assert other.value("all letters", "missed").value == pytest.approx(rate)


def test_letters_that_are_not_known_are_not_measured() -> None:
    model, dictionary, words = spelling([])
    with torch.no_grad():
        model.hf.model.embed_tokens.weight[:, : len(LETTERS)] = 0
    found = absorption(model, dictionary, words, frame="start %s")
    assert [row.what for row in found.rows] == ["probe accuracy"]
    assert "does not know first letters" in found.notes[1]
    with pytest.raises(DictionaryError, match="no letter begins 16 words"):
        absorption(model, dictionary, words[:10], frame="start %s")
    with pytest.raises(DictionaryError, match="does not end with the word"):
        absorption(model, dictionary, words, frame="%s is")


# -- entities ----------------------------------------------------------------------------------------------------------

N = 16
COLORS, SHAPES = ("red", "blue"), ("round", "square")
IS_E, ASK_C, ASK_S, BIAS = 4, 5, 6, 7
COPY, OWN = 8, 12


def color_and_shape() -> tuple[Model, Entities]:
    """Entities with a color and a shape; attention of the second layer copies both to the question, which picks one.

    Dimensions: 0-1 color, 2-3 shape, flags of entity and questions, 8-11 the copies, 12-27 one for each entity.
    """
    d = OWN + N
    eye = torch.eye(d)
    words = {"start": torch.zeros(d), "color": 1 * eye[ASK_C], "shape": 1 * eye[ASK_S]}
    names = [f"e{i}" for i in range(N)]
    for i, name in enumerate(names):
        words[name] = eye[i % 2] + eye[2 + (i // 2) % 2] + eye[IS_E] + eye[OWN + i]
    words |= {word: torch.zeros(d) for word in (*COLORS, *SHAPES)}
    model = network(words)
    order = list(words)
    attention = model.hf.model.layers[1].self_attn
    with torch.no_grad():
        attention.q_proj.weight[0, [ASK_C, ASK_S]] = 200.0
        attention.k_proj.weight[0, IS_E] = 10.0
        for i in range(4):
            attention.v_proj.weight[i, i] = 1
            attention.o_proj.weight[COPY + i, i] = 1
        for i, word in enumerate((*COLORS, *SHAPES)):
            model.hf.lm_head.weight[order.index(word), COPY + i] = 3
            model.hf.lm_head.weight[order.index(word), ASK_C if i < 2 else ASK_S] = 20
    values = {
        "color": {name: (COLORS[i % 2],) for i, name in enumerate(names)},
        "shape": {name: (SHAPES[(i // 2) % 2],) for i, name in enumerate(names)},
    }
    prompts = {"color": ("start %s color", "start start %s color"), "shape": ("start %s shape", "start start %s shape")}
    return model, Entities("thing", tuple(names), values, prompts)


def per_entity(d: int) -> Dictionary:
    """Features of whole entities: each writes its color and its shape together."""
    eye = torch.eye(d)
    decoder = torch.stack([eye[i % 2] + eye[2 + (i // 2) % 2] + eye[OWN + i] for i in range(N)])
    return Dictionary(eye[OWN:], torch.zeros(N), decoder, torch.zeros(d), torch.zeros(N), ("r1",), ("r1",))


@pytest.mark.parametrize("how", ["mask", "difference"])
def test_ravel_is_1_for_features_of_attributes_and_a_half_for_features_of_entities(how: str) -> None:
    model, things = color_and_shape()
    d = OWN + N
    found = ravel(model, one_each("r1", d), [things], how=how, pairs=24, steps=20)  # type: ignore[arg-type]
    assert found.value("thing: D").value == 1
    assert found.value("thing: D", "whole activation").value == 0.5
    assert found.value("thing: cause color", "whole activation").value == 1
    assert found.value("thing: isolation color from shape", "all latents").value == 0
    latents = {name: set(about["latents"]) for name, about in found.details["thing"].items()}
    assert latents["color"] & {0, 1} and not latents["color"] & {2, 3}
    assert latents["shape"] & {2, 3} and not latents["shape"] & {0, 1}
    mixed = ravel(model, per_entity(d), [things], how=how, pairs=24, steps=20)  # type: ignore[arg-type]
    assert mixed.value("thing: D").value < 0.7


def test_ravel_says_where_the_place_does_not_decide() -> None:
    """After the layer that reads the entity nothing there matters: isolation is 1 for nothing, and D is not given."""
    model, things = color_and_shape()
    found = ravel(model, one_each("r1.post", OWN + N), [things], pairs=8, steps=2)
    assert found.value("thing: cause color", "whole activation").value == 0
    assert found.value("thing: isolation color from shape", "whole activation").value == 1
    assert math.isnan(found.value("thing: D").value)
    assert sum("not even the whole activation" in note for note in found.notes) == 2


def test_prompts_that_the_model_fails_are_left_out() -> None:
    model, things = color_and_shape()
    wrong = {**things.values, "color": {**things.values["color"], "e0": ("blue",), "e1": ("red",)}}
    answers = ask(model, one_each("r1", OWN + N), replace(things, values=wrong), "color", 100, 0)
    assert {prompt.entity for prompt in answers.asked} == {f"e{i}" for i in range(2, N)}
    assert answers.of == 2 * N
    assert all(answers.asked[i].ids[p.position] == p.ids[p.position] for i, p in enumerate(answers.asked))
    for base, source in pairs_of(answers, [f"e{i}" for i in range(2, 8)], 1000, 0):
        a, b = answers.asked[base], answers.asked[source]
        assert a.frame == b.frame and a.right != b.right and {a.entity, b.entity} <= {f"e{i}" for i in range(2, 8)}
    never = {**things.values, "color": dict.fromkeys(things.entities, ("round",))}
    with pytest.raises(DictionaryError, match="answers none of 32"):
        ask(model, one_each("r1", OWN + N), replace(things, values=never), "color", 100, 0)


def test_learned_masks_see_what_the_executor_does() -> None:
    """Log probabilities of the differentiable run are those of the exact one; their gradient is that of differences."""
    model, things = color_and_shape()
    dictionary = one_each("r1", OWN + N)
    answers = ask(model, dictionary, things, "color", 100, 0)
    pairs = pairs_of(answers, things.entities, 10, 0)
    mask = torch.rand(dictionary.width, generator=torch.Generator().manual_seed(0)).requires_grad_()
    logs = log_probabilities(answers, dictionary, pairs, mask, source=True)
    said = said_after(answers, dictionary, pairs, patched_values(answers, dictionary, pairs, mask.detach()))
    order = sorted(range(len(pairs)), key=lambda i: len(answers.asked[pairs[i][0]].ids))
    for value, i in zip(logs.exp().tolist(), order, strict=True):
        assert (value > 0.5) == (said[i] in answers.asked[pairs[i][1]].right)
    [gradient] = torch.autograd.grad(logs.mean(), mask)
    for i in (0, 1, 2):
        up, down = (mask.detach().clone() for _ in range(2))
        up[i] += 1e-2
        down[i] -= 1e-2
        slopes = [log_probabilities(answers, dictionary, pairs, m, source=True).mean().item() for m in (up, down)]
        assert (slopes[0] - slopes[1]) / 2e-2 == pytest.approx(float(gradient[i]), abs=2e-3)


@pytest.mark.parametrize("place", ["r1", "a1.z", "m1", "r0.mid"])
def test_patches_of_every_kind_of_place_agree_between_both_runs(place: str) -> None:
    from toys import random_network

    from crosspatch.dictionaries.places import place_width

    model, _ = random_network()
    d = place_width(model, place)
    dictionary = random_dictionary(place, d)
    names = tuple(f"t{i}" for i in range(12))
    frames = ("t50 %s t60", "t51 t52 %s t61 t62")
    values = {e: tuple(f"t{i}" for i in range(200)) for e in names}
    things = Entities("t", names, {"a": values, "b": values}, {"a": frames, "b": frames})
    answers = ask(model, dictionary, things, "a", 100, 0)
    pairs = [(0, 1), (2, 1), (14, 20)]
    mask = torch.ones(dictionary.width)
    values_in = patched_values(answers, dictionary, pairs, mask)
    said = said_after(answers, dictionary, pairs, values_in)
    narrowed = [replace(prompt, right=(int(token),)) for prompt, token in zip(answers.asked, range(24), strict=True)]
    for i, (_, source) in enumerate(pairs):
        narrowed[source] = replace(narrowed[source], right=(int(said[i]),))
        one = replace(answers, asked=narrowed)
        log = log_probabilities(one, dictionary, [pairs[i]], mask, source=True)
        assert float(log.detach().exp()) > 1 / 200  # the most probable of 200 tokens has at least this share
        run_said = said_after(one, dictionary, [pairs[i]], values_in[i : i + 1])
        assert run_said[0] == said[i]


# -- own data, files, everything together ------------------------------------------------------------------------------


def test_own_data_are_balanced_and_were_not_trained_on() -> None:
    from crosspatch.embedded import corpus

    biographies, documents, nouns = own_texts()
    cells = list(zip(biographies.labels["profession"], biographies.labels["gender"], strict=True))
    assert {cells.count(cell) for cell in set(cells)} == {40} and len(set(cells)) == 16
    assert all(corpus.reserved("biography", text) for text in biographies.texts)
    assert len(set(biographies.texts)) == len(biographies)
    assert not any(p in text for text, p in zip(biographies.texts, biographies.labels["profession"], strict=True))
    assert set(documents.classes("behaviour")) == {name.partition("-")[0] for name in corpus.BEHAVIOURS}
    assert nouns.pool == "last" and nouns.texts[0].startswith("The ")
    assert own_texts(1)[0].texts != biographies.texts
    assert len(own_words()) > 400
    kinds = {entities.name: list(entities.values) for entities in own_entities()}
    assert kinds == {"name": ["gender", "word"], "noun": ["number", "word"], "country": ["capital", "word"]}


def test_the_embedded_model_knows_its_entities() -> None:
    import crosspatch as cp

    model = cp.load("embedded")
    dictionary = random_dictionary("r0.post", model.shape.d_model, width=16)
    for entities in own_entities():
        for attribute in entities.values:
            answers = ask(model, dictionary, entities, attribute, 40, 0)
            assert len(answers.asked) > 0.8 * answers.of, (entities.name, attribute)


def test_labelled_texts_are_read(tmp_path: Path) -> None:
    path = tmp_path / "mine.jsonl"
    texts = cue_texts(4)
    rows = [
        {"text": t, "job": p, "sex": g}
        for t, p, g in zip(texts.texts, texts.labels["profession"], texts.labels["gender"], strict=True)
    ]
    path.write_text("\n".join(map(json.dumps, rows)) + "\n\n")
    found = read_texts(path)
    assert found.texts == texts.texts and found.labels["job"] == texts.labels["profession"]
    for text, said in (
        ("{", "mine.jsonl:1: is not JSON"),
        ('{"text": "a"}', "at least one attribute"),
        ('{"text": "a", "x": 1}\n{"text": "b", "y": 1}', "mine.jsonl:2: has attributes"),
        ('{"text": "a", "x": [1]}', "a label is a word"),
        ("", "need a text"),
    ):
        path.write_text(text)
        with pytest.raises(DictionaryError, match=said):
            read_texts(path)
    with pytest.raises(DictionaryError, match="cannot be read"):
        read_texts(tmp_path / "none")


def test_everything_in_one_call(tmp_path: Path) -> None:
    model, dictionary = planted()
    path = tmp_path / "mine.jsonl"
    texts = cue_texts()
    rows = [
        {"text": t, "job": p, "sex": g}
        for t, p, g in zip(texts.texts, texts.labels["profession"], texts.labels["gender"], strict=True)
    ]
    path.write_text("\n".join(map(json.dumps, rows)))
    seen: list[tuple[str, int, int]] = []
    bench = run_tests(model, dictionary, data=path, entities=[], words=["a"], progress=lambda *at: seen.append(at))
    assert list(bench.results) == ["sparse_probing", "scr", "tpp"] and list(bench.skipped) == ["absorption", "ravel"]
    assert [name for name, _, _ in seen] == [*TESTS, ""] and seen[-1][1:] == (5, 5)
    assert bench.results["scr"].value("all pairs", "latents", 2).value == pytest.approx(1, abs=0.05)
    saved = json.loads(bench.save(tmp_path / "bench.json").read_text())
    assert saved == json.loads(json.dumps(bench.plain()))
    assert saved["results"]["tpp"]["rows"][0].keys() >= {"what", "by", "n", "value", "low", "high"}
    assert "absorption: not run" in bench.table()
    assert len(bench.table(full=False)) < len(bench.table())
    again = run_tests(model, dictionary, ["scr"], data=texts)
    assert again.plain()["results"]["scr"]["rows"] == saved["results"]["scr"]["rows"]  # seeded
    with pytest.raises(DictionaryError, match="no test 'scrr'"):
        run_tests(model, dictionary, ["scrr"])
    with pytest.raises(DictionaryError, match="no letter begins"):
        run_tests(model, dictionary, ["absorption"], words=["a"])


@pytest.mark.skipif(not RAVEL.is_dir(), reason=f"no RAVEL files at {RAVEL}")
def test_ravel_files_are_read() -> None:
    city = read_ravel(RAVEL, "city", ("Country", "Continent"), frames=3)
    assert city.values["Country"]["Aalborg"] == ("Denmark",) and len(city.entities) > 3000
    assert all(len(frames) == 3 for frames in city.prompts.values())
    with pytest.raises(DictionaryError, match="no prompts for 'Color'"):
        read_ravel(RAVEL, "city", ("Country", "Color"))
    with pytest.raises(DictionaryError, match="cannot be read"):
        read_ravel(RAVEL, "town", ("Country", "Continent"))


def test_ravel_files_of_a_toy(tmp_path: Path) -> None:
    """The layout of the published files, asked of the network that knows the answers."""
    _, things = color_and_shape()
    about = {e: {a: things.values[a][e][0] for a in ("color", "shape")} for e in things.entities}
    asked = {a: [*things.prompts[a], "two %s and %s"] for a in ("color", "shape")}
    (tmp_path / "ravel_thing_entity_attributes.json").write_text(json.dumps(about))
    (tmp_path / "ravel_thing_attribute_to_prompts.json").write_text(json.dumps(asked))
    read = read_ravel(tmp_path, "thing", ("color", "shape"))
    assert read == things
    (tmp_path / "ravel_thing_entity_attributes.json").write_text("[]")
    with pytest.raises(DictionaryError, match="not a JSON object"):
        read_ravel(tmp_path, "thing", ("color", "shape"))


def test_what_does_not_fit_is_refused() -> None:
    model, dictionary = planted()
    with pytest.raises(DictionaryError, match="1 labels for 2 texts"):
        Texts("x", ("a", "b"), {"l": ("a",)})
    with pytest.raises(DictionaryError, match="has no attribute 'job'"):
        cue_texts().classes("job")
    with pytest.raises(DictionaryError, match="is one token"):
        pooled(model, dictionary, Texts("x", ("w1",), {"l": ("a",)}))
    with pytest.raises(DictionaryError, match="6 numbers per token, the model has 16"):
        pooled(model, one_each("r1", 6), cue_texts(1))
    with pytest.raises(DictionaryError, match="combination of labels has"):
        scr(model, dictionary, cue_texts(4), n=(1,))
    with pytest.raises(DictionaryError, match="needs one %s"):
        Entities("x", ("a",), {"p": {}, "q": {}}, {"p": ("b",), "q": ()})

"""Where the user's own judge may be, by its address and by the environment; nothing is asked here."""

import pytest

from omnigen2_core.errors import JudgeError
from omnigen2_core.reflection.endpoint import (
    KEY_VARIABLE,
    MODEL_VARIABLE,
    TIMEOUT_VARIABLE,
    URL_VARIABLE,
    Endpoint,
)

KEY = "sk-a-very-secret-key-0123456789"


@pytest.mark.parametrize("url", ["", "host/v1", "ftp://host", "file:///etc/passwd", "https://", "http://[::1", "https://h:x/", "https://h/my models"])
def test_what_is_no_address_is_refused(url):
    with pytest.raises(JudgeError, match="no http or https address"):
        Endpoint(url, "eyes")


@pytest.mark.parametrize("url", ["https://me:secret@host/v1", "https://host/v1?key=secret", "https://host/v1#secret"])
def test_an_address_with_secrets_is_refused_without_repeating_them(url):
    with pytest.raises(JudgeError, match="plain address") as caught:
        Endpoint(url, "eyes")
    assert "secret@" not in str(caught.value) and "=secret" not in str(caught.value)


@pytest.mark.parametrize("host", ["localhost:8000", "127.0.0.1", "192.168.1.7:1234", "[::1]:80", "gpu-box", "box.local"])
def test_plain_http_is_for_the_own_network(host):
    Endpoint(f"http://{host}/v1", "eyes")


@pytest.mark.parametrize("host", ["api.example.com", "8.8.8.8", "localhost.example.com"])
def test_over_the_internet_the_key_is_not_sent_unencrypted(host):
    with pytest.raises(JudgeError, match="unencrypted"):
        Endpoint(f"http://{host}/v1", "eyes")


def test_all_of_it_comes_from_the_environment_so_that_no_workflow_can_name_the_server():
    environment = {URL_VARIABLE: "https://host/v1", MODEL_VARIABLE: "eyes", KEY_VARIABLE: KEY}
    assert Endpoint.from_environment(environment) == Endpoint("https://host/v1", "eyes")
    for name in environment:
        with pytest.raises(JudgeError, match=f"needs {name};"):
            Endpoint.from_environment({**environment, name: " "})
    with pytest.raises(JudgeError, match=f"{URL_VARIABLE}, {MODEL_VARIABLE}, {KEY_VARIABLE}"):
        Endpoint.from_environment({})


def test_who_lacks_a_key_learns_that_any_word_will_do_for_a_server_without_keys():
    environment = {URL_VARIABLE: "http://127.0.0.1:1234/v1", MODEL_VARIABLE: "eyes"}
    with pytest.raises(JudgeError, match="any word for a server that asks for none"):
        Endpoint.from_environment(environment)
    with pytest.raises(JudgeError) as caught:
        Endpoint.from_environment({KEY_VARIABLE: KEY})
    assert "any word" not in str(caught.value), "the key is there"


@pytest.mark.parametrize(("text", "seconds"), [("300", 300), (" 0.5 ", 0.5), ("86400", 86400), ("", 60), (" ", 60)])
def test_the_time_for_an_answer_comes_from_the_environment(text, seconds):
    environment = {URL_VARIABLE: "https://host/v1", MODEL_VARIABLE: "eyes", KEY_VARIABLE: KEY, TIMEOUT_VARIABLE: text}
    assert Endpoint.from_environment(environment).timeout == seconds


@pytest.mark.parametrize("text", ["0", "-5", "nan", "inf", "1e400", "86401", "5 minutes", "5\nminutes " + "x" * 999])
def test_a_time_that_is_none_is_refused_in_one_sentence(text):
    environment = {URL_VARIABLE: "https://host/v1", MODEL_VARIABLE: "eyes", KEY_VARIABLE: KEY, TIMEOUT_VARIABLE: text}
    with pytest.raises(JudgeError, match=f"^{TIMEOUT_VARIABLE} is '.*; set it to .*seconds") as caught:
        Endpoint.from_environment(environment)
    message = str(caught.value)
    assert text[:5].splitlines()[0] in message and "\n" not in message and message.endswith(".") and len(message) < 250

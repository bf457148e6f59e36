"""A judge of the user's own: any OpenAI-compatible endpoint that looks at pictures. Nothing uses it unless asked to.

The key exists in the environment only. It is read for each request, put into that request's header, and kept nowhere:
no object holds it, and whatever the server sends back is searched for it before a word of it is shown. Address and
model come from the environment too where a workflow is run, since a workflow from a stranger must not be able to name
the server that the key is sent to.
"""

from __future__ import annotations

import base64
import http.client
import io
import ipaddress
import json
import os
import re
import time
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Callable, Mapping, Sequence
from urllib.parse import urlsplit

from PIL import Image

from ..errors import JudgeError
from ..images import to_rgb
from .answers import LONGEST
from .looker import Looker, Shown

KEY_VARIABLE = "OMNIGEN2_JUDGE_KEY"
URL_VARIABLE = "OMNIGEN2_JUDGE_URL"
MODEL_VARIABLE = "OMNIGEN2_JUDGE_MODEL"
TIMEOUT_VARIABLE = "OMNIGEN2_JUDGE_TIMEOUT"
"""Seconds for one answer; the only one that may be left out."""

MAX_SIDE = 1024
"""Longest side of a picture as it is sent, in pixels."""
MAX_BYTES = 1 << 20
"""Of an answer. A longer one is not what was asked for."""
MAX_TOKENS = 512
THINKING_TOKENS = 4096
"""The same for models that reason before they answer, whose thoughts count."""
WAITS = (2.0, 5.0, 15.0)
"""Seconds until a server that takes no more requests for now is asked again, where it does not say how long."""
LONGEST_WAIT = 30.0
"""Seconds that are waited at most where it does."""
TIMEOUT = 60.0
LONGEST_TIMEOUT = 86400.0
"""Seconds. The operating system's own limit is higher, and differs."""


_THOUGHTS = re.compile(r"\A.*?</think>|\A\s*<think>.*\Z", re.DOTALL)
"""What a reasoning model writes first where its server does not take it out. Of some the prompt itself opens them."""


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Urllib would take the key along to wherever a redirect points."""

    def redirect_request(self, *_: Any) -> None:
        return None


Pause = Callable[[float], bool]
"""Waits for so many seconds; False to give up instead."""


def _sleep(seconds: float) -> bool:
    time.sleep(seconds)
    return True


@dataclass
class _Manner:
    """The settings that a server is asked with. Made for one run, so that a refusal is met once and then remembered."""

    settings: dict[str, Any] = field(default_factory=lambda: {"temperature": 0, "max_tokens": MAX_TOKENS})
    pause: Pause = _sleep
    waits: int = 0
    """How often in a row it was waited for."""

    def learn(self, complaint: str) -> bool:
        """Gives up the settings that a complaint names. False where it names none that is still in use.

        OpenAI's reasoning models know the limit by another name, and no temperature but their own.
        """
        refused = set(re.findall(r"\w+", complaint.lower())) & self.settings.keys() & {"temperature", "max_tokens"}
        self.settings = {name: value for name, value in self.settings.items() if name not in refused}
        if "max_tokens" in refused:
            self.settings["max_completion_tokens"] = THINKING_TOKENS
        return bool(refused)

    def leave_room(self) -> bool:
        """Lets an answer be longer, since thoughts used up what there was. False where it already may."""
        if self.settings.get("max_tokens") != MAX_TOKENS:
            return False
        self.settings["max_tokens"] = THINKING_TOKENS
        return True

    def wait(self, seconds: str | None) -> bool:
        """Waits as long as a server asks for in its header Retry-After. False where there is to be no more of it."""
        if self.waits == len(WAITS):
            return False
        asked = float(seconds) if seconds and re.fullmatch(r"\d{1,6}", seconds.strip()) else WAITS[self.waits]
        self.waits += 1
        return self.pause(min(asked, LONGEST_WAIT))


@dataclass(frozen=True)
class Endpoint:
    """Where the judge is.

    Attributes:
        url: The API's base, such as `https://host/v1`; `/chat/completions` is added.
        model: Name that the server knows the model by.
        timeout: Seconds for one answer, from the request to its last byte.

    Raises:
        JudgeError: The address cannot be used, or would send the key unencrypted over the internet.
    """

    url: str
    model: str
    timeout: float = TIMEOUT

    def __post_init__(self) -> None:
        try:
            parts = urlsplit(self.url)
            host, plain, _ = parts.hostname or "", parts.scheme == "http", parts.port
        except ValueError:
            host, plain, parts = "", False, None
        if parts is None or parts.scheme not in ("http", "https") or not host or not re.fullmatch("[!-~]+", self.url):
            raise JudgeError("The judge's address is no http or https address; give one such as https://host/v1.")
        if parts.username or parts.password or parts.query or parts.fragment:
            raise JudgeError(
                f"The judge's address at {host} carries a user, a query or a fragment, which may hold secrets; "
                f"give the plain address and put the key into {KEY_VARIABLE}."
            )
        if plain and not _is_local(host):
            raise JudgeError(f"http to {host} would send the key unencrypted; give its https address.")
        if not self.model.strip():
            raise JudgeError(f"The judge at {host} needs the name of a model; set {MODEL_VARIABLE}.")

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> "Endpoint":
        """The endpoint that the environment names. Raises JudgeError when a variable is missing or unusable."""
        needed = (URL_VARIABLE, MODEL_VARIABLE, KEY_VARIABLE)
        missing = [name for name in needed if not environment.get(name, "").strip()]
        if missing:
            keyless = f" ({KEY_VARIABLE} to any word for a server that asks for none)" if KEY_VARIABLE in missing else ""
            raise JudgeError(
                f"Your own judge needs {', '.join(missing)}; set it in the environment that starts the program{keyless}."
            )
        timeout = _timeout(environment.get(TIMEOUT_VARIABLE, ""))
        return cls(environment[URL_VARIABLE].strip(), environment[MODEL_VARIABLE].strip(), timeout)

    @property
    def host(self) -> str:
        """Name of the server, for messages."""
        return urlsplit(self.url).hostname or ""

    def looker(self, pause: Pause = _sleep) -> Looker:
        """The endpoint as one who answers questions, for any reflector or verifier. Made for one run.

        It remembers which settings the server's model refused, so that it is asked without them from then on. `pause`
        waits until a busy server may be asked again.
        """
        return Looker(partial(self._ask, _Manner(pause=pause)))

    def ask(self, questions: Sequence[str], images: Shown) -> list[str]:
        """One request for each question with its pictures, in turn.

        Raises JudgeError, in one sentence, when there is no key, the server refuses or fails, time runs out, or the
        answer is malformed.
        """
        return self._ask(_Manner(), questions, images)

    def _ask(self, manner: _Manner, questions: Sequence[str], images: Shown) -> list[str]:
        return [self._ask_one(manner, question, shown) for question, shown in zip(questions, images, strict=True)]

    def _ask_one(self, manner: _Manner, question: str, pictures: Sequence[Image.Image]) -> str:
        key = _key()
        content: list[dict[str, Any]] = [{"type": "image_url", "image_url": {"url": _data_url(p)}} for p in pictures]
        content.append({"type": "text", "text": question})
        asked = {"model": self.model, "messages": [{"role": "user", "content": content}]}
        while True:
            answer = self._send({**asked, **manner.settings}, key, manner)
            if answer is None:
                continue
            manner.waits = 0
            text, cut_off = _text_of(answer, self.host)
            # What was asked for is far shorter than the least there is.
            if not cut_off or not manner.leave_room():
                return _without(key, text)[:LONGEST]

    def _send(self, body: Mapping[str, Any], key: str, manner: _Manner) -> bytes | None:
        """What the server answers; None where it refused the manner of asking, which another has taken the place of."""
        request = urllib.request.Request(
            self.url.rstrip("/") + "/chat/completions",
            data=json.dumps(body).encode(),
            headers={"Content-Type": "application/json", "Authorization": f"Bearer {key}"},
        )
        # Causes are not chained: an exception of the network library may hold the request with its header.
        deadline = time.monotonic() + self.timeout
        # A proxy is for servers elsewhere; one on this network is asked directly.
        own = [urllib.request.ProxyHandler({})] if _is_local(self.host) else []
        opener = urllib.request.build_opener(_NoRedirect, *own)
        failure: str | None
        try:
            with opener.open(request, timeout=self.timeout) as response:
                return self._read(response, deadline)
        except urllib.error.HTTPError as error:
            failure = _refusal(error, key, manner)
        except TimeoutError:
            failure = self._too_slow()
        except urllib.error.URLError as error:
            unreached = f"cannot be reached ({_short(str(error.reason), key)}); is it running?"
            failure = self._too_slow() if isinstance(error.reason, TimeoutError) else unreached
        except (OSError, ValueError, http.client.HTTPException) as error:
            failure = f"broke the connection ({type(error).__name__}); try again."
        if failure is None:
            return None
        raise JudgeError(f"The judge at {self.host} {failure}") from None

    def _read(self, response: Any, deadline: float) -> bytes:
        parts: list[bytes] = []
        while part := response.read1(65536):
            parts.append(part)
            if sum(map(len, parts)) > MAX_BYTES:
                break
            if time.monotonic() > deadline:
                raise TimeoutError
        return b"".join(parts)

    def _too_slow(self) -> str:
        return f"did not answer within {self.timeout:g} seconds; try again, or give it more by {TIMEOUT_VARIABLE}."


def _key() -> str:
    key = os.environ.get(KEY_VARIABLE, "").strip()
    if not key:
        raise JudgeError(
            f"Your own judge needs a key in the environment variable {KEY_VARIABLE}; set it before the program starts "
            "(to any word for a server that asks for none)."
        )
    # The network library would show a key that is no header value in its error.
    if not key.isascii() or not key.isprintable():
        raise JudgeError(f"The key in {KEY_VARIABLE} holds characters that no key has; copy it again.")
    return key


def _timeout(text: str) -> float:
    """The seconds that the environment gives for an answer; TIMEOUT where it gives none."""
    if not text.strip():
        return TIMEOUT
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds <= LONGEST_TIMEOUT:
        raise JudgeError(
            f"{TIMEOUT_VARIABLE} is {text[:40]!r}; set it to a number of seconds above 0 and up to {LONGEST_TIMEOUT:g}, "
            "or leave it out."
        )
    return seconds


def _is_local(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_private
    except ValueError:
        return host == "localhost" or host.endswith((".local", ".lan", ".internal")) or "." not in host


def _data_url(picture: Image.Image) -> str:
    """The picture's pixels alone, as a data URL: metadata of a user's file is not sent."""
    picture = to_rgb(picture).copy()
    picture.thumbnail((MAX_SIDE, MAX_SIDE), Image.Resampling.LANCZOS)
    bare = Image.frombytes("RGB", picture.size, picture.tobytes())
    buffer = io.BytesIO()
    bare.save(buffer, "JPEG", quality=92)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def _refusal(error: urllib.error.HTTPError, key: str, manner: _Manner) -> str | None:
    """What went wrong, for people; None where the server may be asked again: `manner` learnt from it, or waited."""
    if 300 <= error.code < 400:
        return f"redirects (HTTP {error.code}), which no key is sent after; give {URL_VARIABLE} the final address."
    said, parameter = _complaint(error)
    if error.code == 400 and manner.learn(f"{said} {parameter}"):
        return None
    if error.code == 429 and manner.wait(error.headers.get("Retry-After")):
        return None
    told = f"HTTP {error.code}" + (f": {_short(said, key)}" if said else "")
    if error.code == 401:
        return f"refused the key in {KEY_VARIABLE} ({told}); check the key."
    if error.code == 403:
        return f"refused ({told}); check that the key in {KEY_VARIABLE} may use the model in {MODEL_VARIABLE}."
    if error.code == 429:
        return f"takes no more requests ({told}); run again later, or see what the account there allows."
    return f"failed ({told}); check {URL_VARIABLE} and {MODEL_VARIABLE}."


def _complaint(error: urllib.error.HTTPError) -> tuple[str, str]:
    """What a server says of its failure, and which parameter it blames; empty where it does not say."""
    try:
        told = json.loads(error.read(MAX_BYTES))["error"]
    except (OSError, http.client.HTTPException, ValueError, KeyError, TypeError, RecursionError):
        return "", ""
    if not isinstance(told, dict):
        return str(told or ""), ""
    return str(told.get("message") or ""), str(told.get("param") or "")


def _short(text: str, key: str) -> str:
    """One line of what a server or library said, without the key."""
    return " ".join(_without(key, text).split())[:160]


def _without(key: str, text: str) -> str:
    """A text in which the key cannot be read. A few letters, as for a server without keys, are words and no secret."""
    return text.replace(key, "[key]") if len(key) >= 8 else text


def _text_of(body: bytes, host: str) -> tuple[str, bool]:
    """The words of an answer without thoughts before them, and whether it was cut off at its longest.

    Empty where the model refused, or thought and said nothing: that is an answer too, if one of no use.
    """
    malformed = JudgeError(
        f"The answer of the judge at {host} is malformed: it has no choices[0].message.content; "
        "is this an OpenAI-compatible address?"
    )
    try:
        choice = json.loads(body)["choices"][0]
        content, cut_off = choice["message"]["content"], choice.get("finish_reason") == "length"
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError):
        raise malformed from None
    if not isinstance(content, str | None):
        raise malformed
    return _THOUGHTS.sub("", content or "").strip(), cut_off

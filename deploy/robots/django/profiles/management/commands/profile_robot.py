"""The robot of deploy/robots/profile_robot.py, as a Django application would have it: models, an
outbox table, and transaction.atomic(). That file's head says how it works, and why.

    DATABASE_URL=postgres://… python manage.py profile_robot --brokers localhost:9092
"""

import json
import logging
import re
import signal
import time
from datetime import timedelta

from confluent_kafka import Consumer, KafkaException, TopicPartition
from django.core.exceptions import ValidationError
from django.core.management.base import BaseCommand
from django.core.validators import URLValidator
from django.db import DatabaseError, DataError, IntegrityError, InterfaceError, connection, transaction
from django.db.models import Exists, F, OuterRef
from django.db.models.functions import Now
from django.utils import timezone
from profiles.models import HandledCommand, Outbox, Profile, Session, Website

log = logging.getLogger("profile_robot")
ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
PRUNE_EVERY_SECONDS = 3600
# Longer than the commands' topic keeps them: what is gone from there is not delivered again.
REMEMBERED = timedelta(days=8)


class Refused(Exception):
    """The command can't be carried out: a reason for programs, and a sentence for people."""

    def __init__(self, reason, detail):
        super().__init__(detail)
        self.reason = reason


class Asked:
    """A command, as a record of the topic has it. Making this of it never fails."""

    def __init__(self, message):
        headers = {name: value.decode(errors="replace") for name, value in message.headers() or [] if value}
        try:
            body = json.loads(message.value())
        except (TypeError, ValueError, RecursionError):
            body = None
        self.body = body if isinstance(body, dict) else None

        def known(header):
            value = headers.get(header) or (self.body or {}).get(header.replace("-", "_"))
            return value if isinstance(value, str) and ID.fullmatch(value) else None

        self.id = known("id") or f"{message.topic()}/{message.partition()}/{message.offset()}"
        self.type, self.correlation_id = known("type"), known("correlation-id")
        self.session_id, self.document_id = known("session-id"), known("document-id")
        self.traceparent = headers.get("traceparent", "").replace("\0", "") or None

    def id_of(self, field):
        value = self.body.get(field)
        if not isinstance(value, str) or not ID.fullmatch(value):
            raise Refused("invalid", f"{field}: 1 to 128 letters, digits and . _ : - are needed")
        return value

    def text(self, field, least, most, *otherwise):
        value = self.body.get(field)
        if value is None and otherwise:
            return otherwise[0]
        if not isinstance(value, str) or not least <= len(value.strip()) <= most or "\0" in value:
            raise Refused("invalid", f"{field}: a text of {least} to {most} characters is needed")
        return value.strip()


def create_profile(asked, owner):
    values = {"owner": owner, "name": asked.text("name", 1, 200), "headline": asked.text("headline", 0, 300, "")}
    _, made = Profile.objects.get_or_create(id=asked.id_of("document_id"), defaults=values)
    if not made:
        raise Refused("exists", "there is a profile with this id: send UpdateProfile, or make a new id")
    return "ProfileCreated"


def update_profile(asked, owner):
    values = {"name": asked.text("name", 1, 200, None), "headline": asked.text("headline", 0, 300, None)}
    values = {name: value for name, value in values.items() if value is not None}
    found = Profile.objects.filter(id=asked.id_of("document_id"), owner=owner)
    if not found.update(revision=F("revision") + 1, updated_at=Now(), **values):
        raise Refused("unknown_profile", "there is no profile of yours with this id: send CreateProfile first")
    return "ProfileUpdated"


def add_website(asked, owner):
    url = asked.text("url", 1, 2000)
    try:
        URLValidator(schemes=["http", "https"])(url)
    except ValidationError:
        raise Refused("invalid", "url: begin it with http:// or https://") from None
    values = {"owner": owner, "url": url, "title": asked.text("title", 0, 200, "")}
    values |= {"profile_id": asked.id_of("profile_id")}
    _, made = Website.objects.get_or_create(id=asked.id_of("document_id"), defaults=values)
    if not made:
        raise Refused("exists", "there is a website with this id: make a new id")
    return "WebsiteAdded"


COMMANDS = {"CreateProfile": create_profile, "UpdateProfile": update_profile, "AddWebsite": add_website}


def carry_out(asked):
    """The answer's type, or Refused."""
    if asked.body is None:
        raise Refused("invalid", "a command is a JSON object")
    if asked.type not in COMMANDS:
        raise Refused("unknown_type", f"type: one of {', '.join(COMMANDS)} is needed")
    session = Session.objects.filter(id=asked.session_id, expires_at__gt=timezone.now()).first()
    if session is None:
        raise Refused("unknown_session", "the session is unknown or over: log in again")
    return COMMANDS[asked.type](asked, session.username)


@transaction.atomic
def handle(asked):
    with connection.cursor() as cursor:
        cursor.execute("SELECT onelog.context(%s, %s)", [asked.correlation_id, asked.traceparent])
    _, new = HandledCommand.objects.get_or_create(id=asked.id)
    if not new:
        log.info("command %s again: it was handled before", asked.id)
        return
    ids = {name: getattr(asked, name) for name in ("correlation_id", "session_id", "document_id")}
    answer = {"status": "success", "command": asked.id} | ids
    try:
        with transaction.atomic():  # a savepoint: a failure undoes the rows, and not the answer
            kind = carry_out(asked)
    except Exception as error:
        # Of what Postgres says, only this is the command's own fault.
        if isinstance(error, (DatabaseError, InterfaceError)) and not isinstance(error, (DataError, IntegrityError)):
            raise
        if not isinstance(error, Refused):
            log.exception("command %s of type %s", asked.id, asked.type)
            error = Refused("invalid", "the command could not be carried out")
        kind = "CommandFailed"
        answer |= {"status": "failure", "reason": error.reason, "detail": str(error)}
    of = asked.document_id or asked.id
    event = Outbox.objects.create(aggregatetype="response", aggregateid=of, type=kind, payload=answer)
    event.delete()  # published all the same, and the table stays empty
    log.info("command %s: %s", asked.id, kind)


def prune():
    before = timezone.now() - REMEMBERED
    HandledCommand.objects.filter(handled_at__lt=before).delete()
    orphans = ~Exists(Profile.objects.filter(id=OuterRef("profile_id")))
    Website.objects.filter(orphans, created_at__lt=before).delete()


class Command(BaseCommand):
    help = "carries out commands about profiles until SIGTERM"

    def add_arguments(self, parser):
        parser.add_argument("--brokers", default="localhost:9092")
        parser.add_argument("--topic", default="commands.profile")
        parser.add_argument("--group", default="profile-robot")

    def handle(self, *, brokers, topic, group, **_):
        logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
        self.going = True
        signal.signal(signal.SIGTERM, self.end)
        settings = {"bootstrap.servers": brokers, "group.id": group, "auto.offset.reset": "earliest"}
        # Once a second Kafka is told of the offsets that were stored, which is after their COMMIT. A robot that
        # died is replaced after 10 s.
        settings |= {"enable.auto.offset.store": False, "auto.commit.interval.ms": 1000, "session.timeout.ms": 10000}
        self.consumer = Consumer(settings)
        self.consumer.subscribe([topic])
        self.serve()
        self.consumer.close()

    def end(self, *_):
        self.going = False

    def serve(self):
        pause, prune_at = 0.1, 0.0
        while self.going:
            message = self.consumer.poll(0.5)
            if message is not None and message.error():
                log.warning("Kafka: %s", message.error())
                continue
            try:
                if time.monotonic() >= prune_at:
                    prune()
                    prune_at = time.monotonic() + PRUNE_EVERY_SECONDS
                if message is not None:
                    handle(Asked(message))
                pause, done = 0.1, True
            except (DatabaseError, InterfaceError) as error:
                log.warning("Postgres: %s; again in %.1f s", error, pause)
                connection.close()
                time.sleep(pause)
                pause, done = min(pause * 2, 5), False
            if message is not None:
                self.tell(message, done)

    def tell(self, message, done):
        """Kafka gives the message again, or never."""
        try:
            if done:
                self.consumer.store_offsets(message)
            else:
                self.consumer.seek(TopicPartition(message.topic(), message.partition(), message.offset()))
        except KafkaException as error:
            # The partition is another robot's now, which gets the command again and knows its id.
            log.info("Kafka: %s", error)

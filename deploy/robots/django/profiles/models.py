"""The tables of deploy/sample/schema.sql, deploy/robots/robot.sql and migrations/0002_onelog_outbox.sql."""

import uuid

from django.db import models
from django.db.models.functions import Now


class Session(models.Model):
    id = models.TextField(primary_key=True)
    username = models.TextField()
    expires_at = models.DateTimeField()

    class Meta:
        db_table = "session"
        managed = False


class Profile(models.Model):
    id = models.TextField(primary_key=True)
    owner = models.TextField()
    name = models.TextField()
    headline = models.TextField(default="")
    revision = models.IntegerField(default=1)
    created_at = models.DateTimeField(db_default=Now())
    updated_at = models.DateTimeField(db_default=Now())

    class Meta:
        db_table = "profile"
        managed = False


class Website(models.Model):
    """Not a ForeignKey: it may be here before its profile is."""

    id = models.TextField(primary_key=True)
    profile_id = models.TextField()
    owner = models.TextField()
    url = models.TextField()
    title = models.TextField(default="")
    created_at = models.DateTimeField(db_default=Now())

    class Meta:
        db_table = "profile_website"
        managed = False


class HandledCommand(models.Model):
    id = models.TextField(primary_key=True)
    handled_at = models.DateTimeField(db_default=Now())

    class Meta:
        db_table = "handled_command"
        managed = False


class Outbox(models.Model):
    id = models.UUIDField(primary_key=True, default=uuid.uuid4)
    aggregatetype = models.TextField()
    aggregateid = models.TextField()
    type = models.TextField()
    payload = models.JSONField(null=True)

    class Meta:
        db_table = "outbox"
        managed = False

// Puts the page together: one stream feeds the store, the store feeds what is drawn, at most once a frame.
import { hasToken, json, setToken, why } from './api';
import { drawConnection } from './connection';
import { at, say } from './dom';
import { loadDrills, remakeDrillCharts } from './drills';
import { clock } from './format';
import { drawHistory, drawIncidents, historyControls } from './history';
import { incidents } from './incidents';
import { drawNow } from './now';
import { loadQueries } from './query';
import { loadSettings } from './settings';
import { Store } from './store';
import { Stream } from './stream';
import { themeButton } from './theme';
import { drawTiles } from './tiles';
import { drawUsage } from './usage';
import { Timeline } from './timeline';
import type { Status } from './wire';

const STATUS_EVERY_MS = 2_000;

const store = new Store();
const charts = new Timeline(draw);
let drawing = false;

function draw(): void {
  if (drawing) return;
  drawing = true;
  requestAnimationFrame(() => {
    drawing = false;
    drawNow(store);
    drawTiles(store);
    const found = incidents(store.status);
    charts.draw(store, found);
    drawConnection(store);
    drawUsage(store.status);
    drawHistory(store);
    drawIncidents(store, found, (incident) => {
      charts.bring(incident, store.now());
      at('speed').scrollIntoView({ block: 'start' });
    });
    drawLink();
  });
}

function drawLink(): void {
  const { link } = store;
  document.body.dataset.link = link.state;
  const heard = store.heardAt ? clock(store.heardAt) : '';
  say(
    at('link-text'),
    { connecting: 'Connecting', live: 'Live', lost: heard ? `As of ${heard}` : 'No contact', refused: 'Token needed' }[
      link.state
    ],
  );
}

const stream = new Stream(
  '/v1/events',
  (frame) => {
    const happened = store.take(frame);
    // What has just happened has changed what is asked for, too.
    if (frame.event === 'connection') soon();
    if (happened?.event === 'drill' || happened?.event === 'drill_over') soonDrills();
    if (happened?.event === 'reloaded') void refresh();
    draw();
  },
  (link) => {
    const back = link.state === 'live' && store.link.state !== 'live';
    store.link = link;
    if (back) void refresh();
    draw();
  },
);

/** What is not streamed: asked when the service comes back, since it may have been restarted with another configuration. */
async function refresh(): Promise<void> {
  await Promise.all([askStatus(), loadDrills(), loadSettings(), loadQueries()]);
}

let asking: ReturnType<typeof setTimeout> | undefined;
let listing: ReturnType<typeof setTimeout> | undefined;

/** A drill that somebody else started is watched here too. Put off, since a page that resumes hears of many at once. */
function soonDrills(): void {
  listing ??= setTimeout(() => {
    listing = undefined;
    void loadDrills();
  }, 250);
}

function soon(): void {
  asking ??= setTimeout(() => {
    asking = undefined;
    void askStatus();
  }, 250);
}

async function askStatus(): Promise<void> {
  try {
    store.status = await json<Status>('/v1/status', { signal: AbortSignal.timeout(5_000) });
    store.statusError = null;
  } catch (error) {
    store.statusError = why(error);
  }
  draw();
}

setInterval(() => {
  if (store.link.state === 'live' && !document.hidden) void askStatus();
  // So that ages and the time to the next attempt go on while nothing arrives.
  else draw();
}, STATUS_EVERY_MS);

themeButton(at<HTMLButtonElement>('theme'), () => {
  charts.remake();
  remakeDrillCharts();
  draw();
});
at('retry').addEventListener('click', () => stream.now());
historyControls(store, draw);
at('token-form').addEventListener('submit', (event) => {
  event.preventDefault();
  setToken(at<HTMLInputElement>('token').value.trim());
  at<HTMLInputElement>('token').value = '';
  stream.now();
});
if (hasToken()) at('token-help').append(' A token that was given before was refused.');
addEventListener('online', () => stream.now());

// Fonts first: a canvas does not draw itself again when they arrive.
void document.fonts.load('12px Geist').finally(() => {
  charts.remake();
  draw();
});
void stream.run();
draw();

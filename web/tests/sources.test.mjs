// The sources by themselves: no browser, no program.
import assert from 'node:assert/strict';
import { readdir, readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'node:test';
import { fileURLToPath } from 'node:url';
import * as prettier from 'prettier';
import { differences } from '../build.mjs';

const web = fileURLToPath(new URL('..', import.meta.url));

test('s5_the_committed_page_is_what_its_sources_give', async () => {
  assert.deepEqual(await differences(), []);
});

test('s5_the_sources_are_of_one_format', async () => {
  const names = ['build.mjs', 'package.json', 'tsconfig.json'];
  for (const folder of ['src', 'tests', 'reference']) {
    const entries = await readdir(join(web, folder), { recursive: true, withFileTypes: true });
    names.push(...entries.filter((entry) => entry.isFile()).map((entry) => join(entry.parentPath, entry.name)));
  }
  const wrong = [];
  for (const name of names) {
    const filepath = join(name.startsWith('/') ? '' : web, name);
    const options = await prettier.resolveConfig(filepath);
    const { inferredParser } = await prettier.getFileInfo(filepath);
    if (!inferredParser) continue;
    const text = await readFile(filepath, 'utf8');
    if (!(await prettier.check(text, { ...options, filepath }))) wrong.push(filepath);
  }
  assert.deepEqual(wrong, [], "run 'npx prettier --write .' in web/");
});

test('s5_no_word_of_our_own_stands_for_one_of_the_field', async () => {
  const words = [
    'Half answered within',
    '99 % answered within',
    'passed over',
    'Redis is believed',
    'not yet in Redis',
    'Refused to spare',
    'Standstill',
    'challenge',
  ];
  for (const entry of await readdir(join(web, 'src'), { recursive: true, withFileTypes: true })) {
    if (!entry.isFile() || !/\.(ts|html)$/.test(entry.name)) continue;
    const text = await readFile(join(entry.parentPath, entry.name), 'utf8');
    for (const word of words) assert.ok(!text.includes(word), `${entry.name} says "${word}"`);
  }
});
